//! The commands `projection rebuild`, in a process that is killed, and `projection reset`.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use devstack::{Addresses, NewRecord};
use proto::events::{USER_CREATED, User, header};
use uuid::Uuid;

use crate::harness::{ORDERS_TOPIC, TestService, user};

const USERS: i64 = 30_000;
/// Rows that the first rebuild writes before it blocks: more than one transaction has, so that some
/// are committed and some are not.
const ROWS_BEFORE_HOLD: i64 = 25_000;

/// The number of records that a rebuild has applied.
const REBUILT: &str = "select sum(next_offset) from projection_offsets
                       where projection like '% rebuild'";

fn projection(service: &TestService, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_order-service"));
    let variables = [
        ("DATABASE_URL", service.database_url()),
        ("KAFKA_BROKERS", Addresses::shared().brokers()),
        ("USERS_TOPIC", service.topic()),
        ("ORDERS_TOPIC", ORDERS_TOPIC),
        ("CONSUMER_GROUP", service.topic()),
    ];
    command.arg("projection").args(arguments);
    command.env_clear().envs(variables);
    command
}

fn numbered_user(number: i64) -> User {
    User {
        user_id: Uuid::from_u128(number as u128),
        email: format!("u{number}@example.com"),
        name: format!("User {number}"),
        ..user()
    }
}

async fn publish_all(service: &TestService) -> Result<()> {
    let payloads: Result<Vec<_>> = (0..USERS)
        .map(numbered_user)
        .map(|user| Ok((user.user_id.to_string(), serde_json::to_vec(&user)?)))
        .collect();
    let payloads = payloads?;
    let records = payloads.iter().map(|(key, payload)| NewRecord {
        key: Some(key.as_bytes()),
        payload: Some(payload),
        headers: &[(header::SPEC_VERSION, "1.0"), (header::TYPE, USER_CREATED)],
        ..NewRecord::default()
    });
    let records: Vec<_> = records.collect();
    let servers = Addresses::shared();
    servers.write_records(service.topic(), &records).await?;
    service.wait_until_processed(USERS).await
}

/// Blocks a session that writes more rows until a lock is free. New tables have the constraints of the old.
async fn block_after_rows(service: &TestService) -> Result<()> {
    let sql = format!(
        "create sequence written;
         create function hold() returns boolean language plpgsql as $$
         begin
             if nextval('written') > {ROWS_BEFORE_HOLD} then
                 perform pg_advisory_xact_lock_shared(1);
             end if;
             return true;
         end $$;
         alter table users_cache add constraint users_cache_hold check (hold()) not valid"
    );
    service.sql.batch_execute(&sql).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rebuild_resumes_where_it_stopped() -> Result<()> {
    let service = TestService::start("killed_rebuild").await?;
    publish_all(&service).await?;
    let damage =
        "update users_cache set name = 'damaged'; delete from users_cache where version = 1
                  and email like '%7@example.com'";
    service.sql.batch_execute(damage).await?;
    block_after_rows(&service).await?;
    let gate = service.session().await?;
    gate.batch_execute("select pg_advisory_lock(1)").await?;

    let mut killed = projection(&service, &["rebuild"])
        .stderr(Stdio::null())
        .spawn()?;
    let of_here = "locktype = 'advisory'
                   and database = (select oid from pg_database where datname = current_database())";
    let held = format!("select count(*) from pg_locks where not granted and {of_here}");
    service.sql.wait_for(&held, 1).await?;
    killed.kill()?;
    killed.wait()?;
    gate.batch_execute("select pg_advisory_unlock(1)").await?;
    // Its session ends when Postgres detects the closed connection.
    let locks = format!("select count(*) from pg_locks where {of_here}");
    service.sql.wait_for(&locks, 0).await?;
    let committed = service.sql.count(REBUILT).await?;
    ensure!((1..USERS).contains(&committed), "{committed} of {USERS}");

    let again = projection(&service, &["rebuild"]).output()?;
    let output = String::from_utf8(again.stdout)?;
    ensure!(again.status.success(), "{output}");
    println!("killed after {committed} records; resumed: {output}");
    let (_, rest) = output.split_once("rebuilt ").context("no count")?;
    let (records, _) = rest.split_once(" records").context("no count")?;
    assert_eq!(records.parse::<i64>()?, USERS - committed);

    let query = "select user_id::text, email, name, version, deleted from users_cache
                 order by user_id";
    let rows = service.sql.query(query, &[]).await?;
    assert_eq!(rows.len() as i64, USERS);
    for (number, row) in (0..USERS).zip(rows) {
        let (user, found) = (numbered_user(number), row.get::<_, String>(0));
        assert_eq!(found, user.user_id.to_string());
        let found: (&str, &str, i64, bool) = (row.get(1), row.get(2), row.get(3), row.get(4));
        assert_eq!(found, (&*user.email, &*user.name, 1, false));
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_prints_the_offsets_and_is_refused_while_the_service_runs() -> Result<()> {
    let service = TestService::start("reset").await?;
    let stored = "select count(*) from projection_offsets";
    // One row for each partition.
    service.sql.wait_for(stored, 3).await?;
    let shown = projection(&service, &["reset", "--dry-run"]).output()?;
    let output = String::from_utf8(shown.stdout)?;
    ensure!(
        shown.status.success() && output.contains("nothing was changed"),
        "{output}"
    );
    let refused = projection(&service, &["reset"]).output()?;
    let errors = String::from_utf8(refused.stderr)?;
    assert_eq!(refused.status.code(), Some(70), "{errors}");
    ensure!(errors.contains("Stop the service"), "{errors}");
    assert_eq!(service.sql.count(stored).await?, 3);
    service.stop().await
}
