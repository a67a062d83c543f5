//! A replay of all user events.

use std::collections::BTreeMap;

use anyhow::Result;
use devstack::{Addresses, NewRecord};
use proto::events::{USER_UPDATED, User, header};
use uuid::Uuid;

use crate::harness::{CANCELLATIONS, TestService, insert_orders, next_version, user};

const USERS: usize = 300;

/// Rows of `users_cache` by user: e-mail, name, version, whether it is deleted.
type Rows = BTreeMap<Uuid, (Option<String>, Option<String>, i64, bool)>;

async fn rows(service: &TestService) -> Result<Rows> {
    let query = "select user_id::text, email, name, version, deleted from users_cache";
    let rows = service.sql.query(query, &[]).await?;
    let rows = rows.iter().map(|row| {
        let user_id = row.get::<_, String>(0).parse()?;
        Ok((user_id, (row.get(1), row.get(2), row.get(3), row.get(4))))
    });
    rows.collect()
}

/// Returns the rows that the latest version of each user leads to.
fn latest_rows(history: &[User]) -> Rows {
    let mut newest = BTreeMap::new();
    for user in history {
        let kept = newest.entry(user.user_id).or_insert(user);
        if user.version > kept.version {
            *kept = user;
        }
    }
    let rows = newest.into_iter().map(|(user_id, user)| {
        let kept = |text: &String| (!user.deleted).then(|| text.clone());
        let (email, name) = (kept(&user.email), kept(&user.name));
        (user_id, (email, name, user.version, user.deleted))
    });
    rows.collect()
}

/// Returns users with up to four versions; every third user is deleted at the end.
fn versions() -> Vec<User> {
    let mut history = Vec::new();
    for number in 0..USERS {
        let mut version = user();
        version.email = format!("u{number}@example.com");
        for _ in 0..number % 4 {
            history.push(version.clone());
            version = next_version(&version);
            version.name = format!("{} {}", version.name, version.version);
        }
        version.deleted = number % 3 == 0;
        history.push(version);
    }
    history
}

async fn publish_all(service: &TestService, users: &[User]) -> Result<()> {
    let payloads: Result<Vec<_>> = (users.iter())
        .map(|user| Ok((user.user_id.to_string(), serde_json::to_vec(user)?)))
        .collect();
    let payloads = payloads?;
    let records = payloads.iter().map(|(key, payload)| NewRecord {
        key: Some(key.as_bytes()),
        payload: Some(payload),
        headers: &[(header::SPEC_VERSION, "1.0"), (header::TYPE, USER_UPDATED)],
        ..NewRecord::default()
    });
    let records: Vec<_> = records.collect();
    let servers = Addresses::shared();
    servers.write_records(service.topic(), &records).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_duplicate_and_stale_records_keeps_the_latest_users() -> Result<()> {
    let service = TestService::start("replay").await?;
    let mut history = versions();
    let deleted = history.iter().find(|user| user.deleted);
    insert_orders(&service.sql, deleted.expect("a deleted user"), 3).await?;
    // Every tenth record again: some are stale by then.
    history.extend(history.clone().into_iter().step_by(10));
    publish_all(&service, &history).await?;
    service.wait_until_processed(history.len() as i64).await?;
    assert_eq!(rows(&service).await?, latest_rows(&history));
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 3);

    // Reset the offsets while newer versions arrive.
    let from_the_beginning = "update projection_offsets set next_offset = 0";
    service.sql.batch_execute(from_the_beginning).await?;
    let live = latest_rows(&history);
    let newer = history.iter().filter(|user| {
        let (.., version, deleted) = &live[&user.user_id];
        user.version == *version && !deleted
    });
    let newer: Vec<User> = newer.map(next_version).collect();
    publish_all(&service, &newer).await?;
    let first = history.len() as i64;
    history.extend(newer);
    service.wait_until_processed(history.len() as i64).await?;
    assert_eq!(rows(&service).await?, latest_rows(&history));
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 3);
    // Each record of the first run was applied twice; none was lost or dead-lettered.
    let applied = "select sum(applied) from projection_offsets";
    let applied = service.sql.count(applied).await?;
    assert_eq!(applied, first + history.len() as i64);
    service.stop().await
}
