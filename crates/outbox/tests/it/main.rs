//! Tests of the outbox table on a real Postgres.

mod enqueue_function;

use anyhow::Result;
use devstack::Addresses;
use diesel::{QueryableByName, migration::MigrationSource, pg::Pg, result::Error, sql_types};
use diesel_async::{
    AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl as _,
    SimpleAsyncConnection as _,
};
use diesel_migrations::MigrationHarness as _;
use outbox::Event;

/// Connects to a new database with the outbox and a domain table.
async fn database() -> Result<AsyncPgConnection> {
    let name = Addresses::unique_name("outbox");
    let url = Addresses::shared().create_database(&name).await?;
    let mut harness = AsyncMigrationHarness::new(AsyncPgConnection::establish(&url).await?);
    harness
        .run_pending_migrations(outbox::MIGRATIONS)
        .map_err(anyhow::Error::from_boxed)?;
    let mut conn = harness.into_inner();
    conn.batch_execute("create table things (id bigint primary key)")
        .await?;
    Ok(conn)
}

fn event(key: i64) -> Result<Event, Error> {
    let state = serde_json::json!({ "id": key });
    Event::new("things.v1", key, "thing_created", 1, &state)
        .map_err(|err| Error::SerializationError(err.into()))
}

async fn create_thing(conn: &mut AsyncPgConnection, id: i64) -> Result<(), Error> {
    diesel::sql_query(format!("insert into things values ({id})"))
        .execute(conn)
        .await?;
    outbox::enqueue(conn, &event(id)?).await
}

#[derive(Debug, QueryableByName, PartialEq, Eq)]
struct Row {
    #[diesel(sql_type = sql_types::Text)]
    key: String,
    #[diesel(sql_type = sql_types::Text)]
    event_type: String,
    #[diesel(sql_type = sql_types::Text)]
    payload: String,
}

async fn rows(conn: &mut AsyncPgConnection) -> Result<Vec<Row>, Error> {
    let query = "select key, event_type, convert_from(payload, 'UTF8') as payload
                 from outbox order by seq";
    diesel::sql_query(query).load(conn).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_transaction_leaves_exactly_its_events() -> Result<()> {
    let mut conn = database().await?;
    conn.transaction(async |conn| {
        create_thing(conn, 1).await?;
        create_thing(conn, 2).await
    })
    .await?;
    let row = |key: &str| Row {
        key: key.into(),
        event_type: "thing_created".into(),
        payload: format!(r#"{{"id":{key}}}"#),
    };
    assert_eq!(rows(&mut conn).await?, [row("1"), row("2")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_transaction_leaves_no_event() -> Result<()> {
    let mut conn = database().await?;
    let result = conn
        .transaction(async |conn| {
            create_thing(conn, 1).await?;
            Err::<(), _>(Error::RollbackTransaction)
        })
        .await;
    assert_eq!(result, Err(Error::RollbackTransaction));
    assert_eq!(rows(&mut conn).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_change_leaves_no_event() -> Result<()> {
    let mut conn = database().await?;
    conn.transaction(async |conn| create_thing(conn, 1).await)
        .await?;
    let again = conn
        .transaction(async |conn| create_thing(conn, 1).await)
        .await;
    assert!(matches!(again, Err(Error::DatabaseError(..))), "{again:?}");
    assert_eq!(rows(&mut conn).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_savepoint_leaves_no_event() -> Result<()> {
    let mut conn = database().await?;
    conn.transaction(async |conn| {
        create_thing(conn, 1).await?;
        let inner = conn
            .transaction(async |conn| {
                create_thing(conn, 2).await?;
                Err::<(), _>(Error::RollbackTransaction)
            })
            .await;
        assert!(inner.is_err());
        Ok::<_, Error>(())
    })
    .await?;
    assert_eq!(rows(&mut conn).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueue_fails_outside_of_a_transaction() -> Result<()> {
    let mut conn = database().await?;
    let result = outbox::enqueue(&mut conn, &event(1)?).await;
    assert!(matches!(result, Err(Error::NotInTransaction)), "{result:?}");
    assert_eq!(rows(&mut conn).await?, []);
    Ok(())
}

#[derive(QueryableByName)]
struct Defaults {
    #[diesel(sql_type = sql_types::Bool)]
    own_xid: bool,
    #[diesel(sql_type = sql_types::Bool)]
    bucket_of_now: bool,
    #[diesel(sql_type = sql_types::Nullable<sql_types::Text>)]
    traceparent: Option<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_has_its_transaction_id_bucket_and_trace_context() -> Result<()> {
    let mut conn = database().await?;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let event = event(1)?.with_traceparent(Some(traceparent.into()));
    let defaults: Defaults = conn
        .transaction(async |conn| {
            outbox::enqueue(conn, &event).await?;
            diesel::sql_query(
                "select xid = pg_current_xact_id() as own_xid, traceparent,
                        bucket = (extract(epoch from created_at)::bigint / 600 % 8) as bucket_of_now
                 from outbox",
            )
            .get_result(conn)
            .await
        })
        .await?;
    assert!(defaults.own_xid);
    assert!(defaults.bucket_of_now);
    assert_eq!(defaults.traceparent.as_deref(), Some(traceparent));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migrations_can_be_reverted_and_run_again() -> Result<()> {
    let mut harness = AsyncMigrationHarness::new(database().await?);
    let reverted = harness
        .revert_all_migrations(outbox::MIGRATIONS)
        .map_err(anyhow::Error::from_boxed)?;
    let all = MigrationSource::<Pg>::migrations(&outbox::MIGRATIONS)
        .map_err(anyhow::Error::from_boxed)?;
    assert_eq!(reverted.len(), all.len(), "each can be reverted");
    harness
        .run_pending_migrations(outbox::MIGRATIONS)
        .map_err(anyhow::Error::from_boxed)?;
    assert_eq!(rows(&mut harness.into_inner()).await?, []);
    Ok(())
}
