//! The role of `sql/role.sql` has exactly the privileges that the relay needs.

use anyhow::{Context as _, Result};
use devstack::{Addresses, Sql};
use outbox_relay::{
    ResetTo,
    config::{OnRejection, SinkKind},
    reset,
};
use tokio_postgres::error::SqlState;

use crate::{
    harness::{Database, Session, Setup},
    truncation::{insert, rows},
};

const SQL: &str = include_str!("../../../sql/role.sql");
const WRITER_SQL: &str = include_str!("../../../sql/role-writer.sql");

/// Creates the role with a unique name, because all databases of a cluster share their roles.
pub(crate) async fn create(admin: &Sql, name: &str, password: &str) -> Result<()> {
    let sql = SQL.replace("outbox_relay", name);
    admin.batch_execute(&sql).await?;
    let sql = format!("alter role {name} password '{password}'");
    Ok(admin.batch_execute(&sql).await?)
}

/// Returns the URL of the same database for another role.
pub(crate) fn url_for(url: &str, name: &str, password: &str) -> Result<String> {
    let (_, place) = url.split_once('@').context("a URL with a password")?;
    Ok(format!("postgres://{name}:{password}@{place}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_role_can_publish_park_truncate_and_reset() -> Result<()> {
    let mut setup = Setup::new("role", SinkKind::Kafka).await?;
    setup.on_rejection = OnRejection::ParkKey;
    let session = Session::new(&setup.database).await?;
    let name = Addresses::unique_name("relay_role");
    create(&session.client, &name, "secret").await?;
    setup.database = Database {
        url: url_for(&setup.database.url, &name, "secret")?,
    };
    session.client.batch_execute(&insert(&setup, 3, 10)).await?;
    setup.write(&session, "a").await?;
    let version = session.change("b").await?;
    session.enqueue("missing.topic", "b", version).await?;
    let relay = setup.start().await?;
    setup.records(11).await?;
    session.client.wait_for(&rows(3), 0).await?;
    let parked = "select count(*) from relay_parked where key = 'b'";
    session.client.wait_for(parked, 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    let source = setup.config()?.sources.remove(0);
    // The first ten rows are truncated already.
    assert_eq!(reset(&source, ResetTo::Beginning).await?, 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_role_is_denied_everything_else() -> Result<()> {
    let database = Database::new("role_denied").await?;
    let admin = database.connect().await?;
    let name = Addresses::unique_name("relay_role");
    create(&admin, &name, "secret").await?;
    let relay = Sql::connect(&url_for(&database.url, &name, "secret")?).await?;
    for statement in [
        "insert into outbox (topic, key, event_type, aggregate_version) values ('t', 'k', 'e', 1)",
        "insert into outbox_0 (topic, key, event_type, aggregate_version) values ('t', 'k', 'e', 1)",
        "update outbox set key = 'other'",
        "update outbox_0 set key = 'other'",
        "delete from outbox",
        "delete from outbox_0",
        "truncate outbox",
        "drop table outbox_0",
        "alter table outbox add column more text",
        "select nextval('outbox_seq')",
        "delete from relay_checkpoints",
        "select from aggregates",
        "insert into aggregates values ('a', 1)",
        "create table more (id int)",
        "create schema more",
        "create role more",
    ] {
        let denied = relay.batch_execute(statement).await.err();
        let code = denied.as_ref().and_then(|err| err.code());
        assert_eq!(code, Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_can_insert_events_but_not_set_their_position() -> Result<()> {
    let database = Database::new("role_writer").await?;
    let admin = database.connect().await?;
    let name = Addresses::unique_name("writer_role");
    let role = format!("create role {name} login password 'secret'");
    admin.batch_execute(&role).await?;
    let grants = WRITER_SQL.replace("shop_app", &name);
    admin.batch_execute(&grants).await?;
    let writer = Sql::connect(&url_for(&database.url, &name, "secret")?).await?;
    for statement in [
        "insert into outbox (topic, key, event_type, aggregate_version) values ('t', 'k', 'e', 1)",
        "select outbox_enqueue('t', 'k', 'e', 2, '{}', '{\"a\": \"b\"}', '00-1-2-01', gen_random_uuid())",
    ] {
        writer.batch_execute(statement).await?;
    }
    let insert = "insert into outbox (topic, key, event_type, aggregate_version, ";
    for (column, value) in [
        ("xid", "'1'"),
        ("seq", "1"),
        ("bucket", "1"),
        ("created_at", "'infinity'"),
    ] {
        let statement = format!("{insert}{column}) values ('t', 'k', 'e', 3, {value})");
        let denied = writer.batch_execute(&statement).await.err();
        let code = denied.as_ref().and_then(|err| err.code());
        assert_eq!(code, Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
    }
    assert_eq!(admin.count("select count(*) from outbox").await?, 2);
    Ok(())
}
