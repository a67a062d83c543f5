//! Tombstones: a record with a null value is the end of its user, with any headers.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use devstack::{Addresses, NewRecord, Sql};
use order_service::users_projection::UsersProjection;
use projection::{RedriveOutcome, dead_letters, redrive};
use proto::events::{USER_DELETED, USER_UPDATED, User, header};
use service_kit::database::connect_once;
use tonic::Code;
use uuid::Uuid;

use crate::harness::{
    CANCELLATIONS, ORDERS_TOPIC, TestService, assert_rejected, deleted_version, insert_orders,
    next_version, request, user,
};

const DEAD: &str = "select count(*) from dead_letters";
const OPEN: &str = "select count(*) from orders where state = 'created'";
const USERS: &str = "select count(*) from users_cache";

type Headers = &'static [(&'static str, &'static str)];

const SPEC: (&str, &str) = (header::SPEC_VERSION, "1.0");
const DELETED: (&str, &str) = (header::TYPE, USER_DELETED);
const UPDATED: Headers = &[SPEC, (header::TYPE, USER_UPDATED)];

/// Headers with which a tombstone may be written: by Kafka tools, by other programs, and by user-service.
const HEADERS: [Headers; 9] = [
    &[],
    &[("written-by", "a tool")],
    UPDATED,
    &[SPEC, (header::TYPE, "forgotten")],
    &[(header::SPEC_VERSION, "2.0"), DELETED],
    &[SPEC, DELETED],
    &[SPEC, DELETED, (header::AGGREGATE_VERSION, "two")],
    // The version that it ends.
    &[SPEC, DELETED, (header::AGGREGATE_VERSION, "1")],
    &[
        SPEC,
        DELETED,
        (header::AGGREGATE_VERSION, "2"),
        (header::ID, "019b2c3d-4e5f-7000-8000-000000000000"),
        (header::CAUSATION_DEPTH, "8"),
    ],
];

async fn end(service: &TestService, user: &User, headers: Headers) -> Result<()> {
    service.write_null(&user.user_id.to_string(), headers).await
}

/// Waits until all records of the topic are processed.
async fn wait_until_all_processed(service: &TestService) -> Result<()> {
    let records = Addresses::shared().read_topic(service.topic()).await?;
    service.wait_until_processed(records.len() as i64).await
}

/// Checks that a user is deleted: it cannot order, and has no open order and no personal data.
async fn assert_ended(service: &TestService, user: &User) -> Result<()> {
    let rejected = service.create(request(user.user_id)).await;
    assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
    let user_id = user.user_id;
    for kept in [
        format!("select count(*) from orders where user_id = '{user_id}' and state = 'created'"),
        format!(
            "select count(*) from users_cache where user_id = '{user_id}' and name is not null"
        ),
        format!(
            "select count(*) from dead_letters where key = '{user_id}' and payload is not null"
        ),
    ] {
        assert_eq!(service.sql.count(&kept).await?, 0, "{kept}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_with_any_headers_deletes_a_known_user() -> Result<()> {
    let service = TestService::start("any_headers").await?;
    let mut users = Vec::new();
    for headers in HEADERS {
        let user = service.known_user().await?;
        service.order(&user).await?;
        service.write(&user.user_id.to_string(), b"poison").await?;
        end(&service, &user, headers).await?;
        users.push(user);
    }
    wait_until_all_processed(&service).await?;
    let count = users.len() as i64;
    for (user, headers) in users.iter().zip(HEADERS) {
        assert_ended(&service, user)
            .await
            .with_context(|| format!("{headers:?}"))?;
    }
    assert_eq!(service.sql.count(CANCELLATIONS).await?, count);
    assert_eq!(service.sql.count(DEAD).await?, count);

    // Repeated tombstones cancel nothing, and repeated events restore nothing.
    for (user, headers) in users.iter().zip(HEADERS) {
        insert_orders(&service.sql, user, 1).await?;
        end(&service, user, headers).await?;
        service.publish_user(user).await?;
    }
    wait_until_all_processed(&service).await?;
    assert_eq!(service.sql.count(CANCELLATIONS).await?, count);
    service
        .sql
        .batch_execute("delete from orders where state = 'created'")
        .await?;
    for (user, headers) in users.iter().zip(HEADERS) {
        assert_ended(&service, user)
            .await
            .with_context(|| format!("{headers:?}"))?;
    }
    assert_eq!(service.sql.count(DEAD).await?, count);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_of_an_unknown_key_is_skipped() -> Result<()> {
    let service = TestService::start("unknown_key").await?;
    let user = service.known_user().await?;
    let upper_case = user.user_id.to_string().to_uppercase();
    for key in [&*Uuid::now_v7().to_string(), "ada", "", &upper_case] {
        service.write_null(key, &[]).await?;
        service.write_null(key, UPDATED).await?;
    }
    wait_until_all_processed(&service).await?;
    assert_eq!(service.sql.count(DEAD).await?, 0);
    assert_eq!(service.sql.count(USERS).await?, 1);
    service.order(&user).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_erases_the_dead_letters_of_an_unknown_user() -> Result<()> {
    let service = TestService::start("unknown").await?;
    let user = user();
    service.write(&user.user_id.to_string(), b"poison").await?;
    end(&service, &user, &[]).await?;
    wait_until_all_processed(&service).await?;
    let erased = "select count(*) from dead_letters where erased_at is not null";
    assert_eq!(service.sql.count(erased).await?, 1);
    assert_eq!(service.sql.count(USERS).await?, 0);
    service.stop().await
}

/// The histories of users with a tombstone without headers, by how they end.
struct Histories {
    ended: Vec<Vec<Option<User>>>,
    live: Vec<Vec<Option<User>>>,
}

impl Histories {
    /// `None` is a tombstone.
    fn new() -> Self {
        let [a, b, c, d, e, f] = std::array::from_fn(|_| user());
        let deleted = deleted_version(&d);
        Self {
            ended: vec![
                vec![Some(a), None],
                vec![
                    Some(b.clone()),
                    None,
                    Some(b.clone()),
                    Some(next_version(&b)),
                ],
                vec![Some(next_version(&c)), None, Some(c), None],
                vec![Some(d.clone()), Some(deleted), None, Some(d)],
            ],
            // The tombstone comes before the user is known.
            live: vec![
                vec![None, Some(e)],
                vec![None, None, Some(f.clone()), Some(next_version(&f))],
            ],
        }
    }

    /// Writes all records to partition 0, so that a consumer that starts later reads them in one batch.
    async fn write(&self, topic: &str) -> Result<()> {
        let mut records = Vec::new();
        for history in self.ended.iter().chain(&self.live) {
            let user = history.iter().flatten().next().context("a user")?;
            for version in history {
                let payload = version.as_ref().map(serde_json::to_vec).transpose()?;
                records.push((user.user_id.to_string(), payload));
            }
        }
        let records = records.iter().map(|(key, payload)| NewRecord {
            partition: Some(0),
            key: Some(key.as_bytes()),
            payload: payload.as_deref(),
            headers: payload.as_ref().map_or(&[], |_| UPDATED),
            ..NewRecord::default()
        });
        let records: Vec<_> = records.collect();
        Addresses::shared().write_records(topic, &records).await
    }

    async fn assert_applied(&self, service: &TestService) -> Result<()> {
        for history in &self.ended {
            let user = history.iter().flatten().next().context("a user")?;
            assert_ended(service, user).await?;
        }
        for history in &self.live {
            let user = history.iter().flatten().next_back().context("a user")?;
            service.order(user).await?;
            service.wait_for_version(user).await?;
        }
        assert_eq!(service.sql.count(DEAD).await?, 0);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_and_events_of_a_batch_are_applied_in_order() -> Result<()> {
    let (name, servers) = (Addresses::unique_name("batch"), Addresses::shared());
    servers.create_topic(&name, 1).await?;
    let histories = Histories::new();
    histories.write(&name).await?;
    let service = TestService::start_on(name, &[]).await?;
    wait_until_all_processed(&service).await?;
    histories.assert_applied(&service).await?;
    service.stop().await
}

/// Rows of `users_cache`, as text.
async fn rows(sql: &Sql) -> Result<Vec<String>> {
    let query = "select users_cache::text from users_cache order by user_id";
    let rows = sql.query(query, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_and_a_rebuild_of_tombstones_change_nothing() -> Result<()> {
    // One partition: the next record in it shows the consumer that its offset was set back.
    let (name, servers) = (Addresses::unique_name("replayed"), Addresses::shared());
    servers.create_topic(&name, 1).await?;
    let service = TestService::start_on(name, &[]).await?;
    let mut histories = Histories::new();
    // Here a rebuild knows the user only by the events after its tombstone, and so does the consumer.
    let live = std::mem::take(&mut histories.live);
    histories.write(service.topic()).await?;
    for history in live {
        for version in history.iter().flatten() {
            service.publish_user(version).await?;
        }
    }
    wait_until_all_processed(&service).await?;
    histories.assert_applied(&service).await?;
    let before = rows(&service.sql).await?;
    let open = "select user_id::text from orders where state = 'created'";
    let open_before = service.sql.query(open, &[]).await?.len();

    let from_the_beginning = "update projection_offsets set next_offset = 0";
    service.sql.batch_execute(from_the_beginning).await?;
    service.known_user().await?;
    wait_until_all_processed(&service).await?;
    let after = rows(&service.sql).await?;
    assert!(
        before.iter().all(|row| after.contains(row)),
        "{before:?} {after:?}"
    );

    service.rebuild().await?;
    assert_eq!(rows(&service.sql).await?, after);
    assert_eq!(service.sql.query(open, &[]).await?.len(), open_before);
    assert_eq!(service.sql.count(DEAD).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_tombstone_deletes_its_user() -> Result<()> {
    let service = TestService::start("redriven").await?;
    let user = service.known_user().await?;
    service.order(&user).await?;
    // As an earlier version stored it.
    let insert =
        "insert into dead_letters (projection, topic, partition, record_offset, key, payload,
                      header_names, header_values, error_class, error)
                  values ($1, $1, 0, 1000, $2, null, '{}', '{}', 'header',
                          'missing header ce_specversion')";
    let key = user.user_id.to_string().into_bytes();
    service.sql.execute(insert, &[&service.name, &key]).await?;
    let mut conn = connect_once(order_service::NAME, &service.database_url().into()).await?;
    let dead_letters = dead_letters::list(&mut conn, &service.name, 0, 1).await?;
    let id = dead_letters
        .first()
        .context("a dead letter")?
        .dead_letter_id;
    let projection = UsersProjection {
        orders_topic: ORDERS_TOPIC.to_owned(),
        user_subscribers: Arc::default(),
        order_subscribers: Arc::default(),
    };
    let redriven = redrive(&mut conn, &projection, &service.name, id).await?;
    assert_eq!(redriven, RedriveOutcome::Applied);
    assert_ended(&service, &user).await?;
    assert_eq!(service.sql.count(OPEN).await?, 0);
    assert_eq!(service.sql.count(DEAD).await?, 0);
    service.stop().await
}
