//! Poison records of users: each kind is dead-lettered unchanged, and the next record is applied.

use std::time::Duration;

use anyhow::{Context as _, Result};
use devstack::{Addresses, NewRecord};
use proto::events::{USER_DELETED, USER_UPDATED, User, header};
use testkit::{Header, PoisonRecord, median};
use uuid::Uuid;

use crate::harness::{TestService, user};

const SPEC: Header = (header::SPEC_VERSION, "1.0");
const UPDATED: Header = (header::TYPE, USER_UPDATED);
const DELETED: Header = (header::TYPE, USER_DELETED);

/// The maximum number of records in a batch.
const MANY: usize = 1_000;

fn kinds() -> Result<Vec<PoisonRecord>> {
    let good = user();
    let key = || Some(good.user_id.to_string().into_bytes());
    // Tombstones have another key, because they erase the dead letters of theirs.
    let another_key = || Some(Uuid::now_v7().to_string().into_bytes());
    let named = |name: &str| {
        let name = name.to_owned();
        serde_json::to_vec(&User {
            name,
            ..good.clone()
        })
    };
    let payload = || named(&good.name);
    let kind = PoisonRecord::new;
    let usual = [SPEC, UPDATED];
    let random: Vec<u8> = (0..99_u8).map(|n| n.wrapping_mul(151) ^ 0xa5).collect();
    Ok(vec![
        kind("random bytes", Some("payload"), key(), Some(random), &usual),
        kind("no headers", Some("header"), key(), Some(payload()?), &[]),
        kind("no type", Some("header"), key(), Some(payload()?), &[SPEC]),
        kind(
            "another major version",
            Some("version"),
            key(),
            Some(payload()?),
            &[(header::SPEC_VERSION, "2.0"), UPDATED],
        ),
        kind("no key", Some("key"), None, Some(payload()?), &usual),
        kind(
            "a key that is not text",
            Some("key"),
            Some(b"\xff\x00".to_vec()),
            Some(payload()?),
            &usual,
        ),
        kind(
            "the key of another user",
            Some("key"),
            another_key(),
            Some(payload()?),
            &usual,
        ),
        kind(
            "a value that its column can't hold",
            Some("value"),
            key(),
            Some(named(&"long ".repeat(20))?),
            &usual,
        ),
        kind(
            "a value that a constraint rejects",
            Some("constraint"),
            key(),
            Some(named("Nobody")?),
            &usual,
        ),
        kind(
            "a tombstone without a key",
            None,
            None,
            None,
            &[SPEC, DELETED],
        ),
        // Counts as applied: only the database knows that it has no such user.
        kind(
            "a tombstone without a version",
            None,
            another_key(),
            None,
            &[SPEC, DELETED],
        )
        .applied(),
        kind(
            "a tombstone of no deletion",
            None,
            another_key(),
            None,
            &usual,
        )
        .applied(),
        kind(
            "a tombstone without headers",
            None,
            another_key(),
            None,
            &[],
        )
        .applied(),
        kind(
            "a tombstone with a key that is not an id",
            None,
            Some(b"ada".to_vec()),
            None,
            &usual,
        ),
        kind(
            "a tombstone with a key that is not text",
            None,
            Some(b"\xff\x00".to_vec()),
            None,
            &[SPEC, DELETED],
        ),
        kind(
            "an empty value",
            Some("payload"),
            key(),
            Some(Vec::new()),
            &usual,
        ),
        kind(
            "an empty value without headers",
            Some("header"),
            key(),
            Some(Vec::new()),
            &[],
        ),
        kind(
            "an unknown type",
            None,
            key(),
            Some(b"\xff".to_vec()),
            &[SPEC, (header::TYPE, "user_praised")],
        ),
    ])
}

/// Starts a service with a topic of one partition that accepts records without a key, and a dead letter
/// topic.
async fn start() -> Result<(TestService, String)> {
    let (name, servers) = (Addresses::unique_name("kinds"), Addresses::shared());
    let dead_letters = format!("{name}.dlq");
    servers.create_dead_letter_topic(&name).await?;
    servers.create_dead_letter_topic(&dead_letters).await?;
    let options = ["--dead-letter-topic", &dead_letters];
    let service = TestService::start_on(name, &options).await?;
    let narrow = "alter table users_cache alter column name type varchar(50);
        alter table users_cache add constraint users_cache_somebody check (name <> 'Nobody')";
    service.sql.batch_execute(narrow).await?;
    Ok((service, dead_letters))
}

/// Writes records and then a new user; returns the time until that user is applied.
async fn time_to_apply(service: &TestService, before: &[NewRecord<'_>]) -> Result<Duration> {
    let user = user();
    let (key, payload) = (user.user_id.to_string(), serde_json::to_vec(&user)?);
    let last = NewRecord {
        key: Some(key.as_bytes()),
        payload: Some(&payload),
        headers: &[SPEC, UPDATED],
        ..NewRecord::default()
    };
    let applied = format!("select count(*) from users_cache where user_id = '{key}'");
    testkit::time_to_apply(service, before, last, &applied).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_dead_lettered_unchanged_and_the_next_user_applied() -> Result<()> {
    let (service, dead_letters) = start().await?;
    let kinds = kinds()?;
    time_to_apply(&service, &[]).await?;
    let first = service
        .sql
        .count("select sum(next_offset) from projection_offsets")
        .await?;
    let (mut behind, mut alone) = (Vec::new(), Vec::new());
    for kind in &kinds {
        alone.push(time_to_apply(&service, &[]).await?);
        behind.push(time_to_apply(&service, &[kind.record()]).await?);
    }
    println!("time until a user is applied:");
    for ((kind, behind), alone) in kinds.iter().zip(&behind).zip(&alone) {
        println!("{behind:.0?} after {}, {alone:.0?} alone", kind.what);
    }
    println!(
        "medians: {:.0?} after a poison record, {:.0?} alone",
        median(behind),
        median(alone)
    );
    let poison = || kinds.iter().filter_map(|kind| Some((kind, kind.class?)));
    let counts = "select applied, skipped, dead_lettered from projection_offsets";
    let counts = service.sql.query_one(counts, &[]).await?;
    let counts: (i64, i64, i64) = (counts.get(0), counts.get(1), counts.get(2));
    let (all, dead_lettered) = (kinds.len() as i64, poison().count() as i64);
    let applied = kinds.iter().filter(|kind| kind.is_applied).count() as i64;
    assert_eq!(
        counts,
        (
            first + 2 * all + applied,
            all - dead_lettered - applied,
            dead_lettered
        )
    );

    let copied = "select count(*) from dead_letters where in_topic";
    service.sql.wait_for(copied, dead_lettered).await?;
    let copies = Addresses::shared().read_topic(&dead_letters).await?;
    assert_eq!(copies.len(), poison().count());
    for (index, kind) in kinds.iter().enumerate() {
        let offset = first + 3 * index as i64 + 1;
        let of_offset = offset.to_string();
        let copy = copies
            .iter()
            .find(|copy| copy.header("dlq_offset") == Some(&of_offset));
        if let Some(class) = kind.class {
            let copy = copy.with_context(|| format!("no copy of {}", kind.what))?;
            let checked = kind
                .assert_dead_lettered(&service.sql, class, offset, copy)
                .await;
            checked.context(kind.what)?;
        }
    }
    let rejected_by = "select count(*) from dead_letters where error = 'users_cache_somebody'";
    assert_eq!(service.sql.count(rejected_by).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_record_among_many_is_dead_lettered_alone() -> Result<()> {
    let (service, _) = start().await?;
    time_to_apply(&service, &[]).await?;
    let mut users: Vec<User> = (0..MANY).map(|_| user()).collect();
    let alone = time_to_apply_all(&service, &users).await?;
    users
        .iter_mut()
        .for_each(|user| user.user_id = Uuid::now_v7());
    users[MANY / 2].name = "Nobody".into();
    let behind = time_to_apply_all(&service, &users).await?;
    println!(
        "time until a user is applied after {MANY} others: {alone:.0?}, with a poison record {behind:.0?}"
    );
    let applied = service
        .sql
        .count("select count(*) from users_cache")
        .await?;
    assert_eq!(applied as usize, 1 + (MANY + 1) + (MANY - 1 + 1));
    let rejected_by = "select count(*) from dead_letters where error = 'users_cache_somebody'";
    assert_eq!(service.sql.count(rejected_by).await?, 1);
    service.stop().await
}

async fn time_to_apply_all(service: &TestService, users: &[User]) -> Result<Duration> {
    let payloads: Result<Vec<_>> = (users.iter())
        .map(|user| Ok((user.user_id.to_string(), serde_json::to_vec(user)?)))
        .collect();
    let payloads = payloads?;
    let records = payloads.iter().map(|(key, payload)| NewRecord {
        key: Some(key.as_bytes()),
        payload: Some(payload),
        headers: &[SPEC, UPDATED],
        ..NewRecord::default()
    });
    time_to_apply(service, &records.collect::<Vec<_>>()).await
}
