//! The SQL function `outbox_enqueue`.

use anyhow::Result;
use diesel::{QueryableByName, result::Error, sql_types};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};

use crate::{database, rows};

#[derive(Debug, QueryableByName, PartialEq, Eq)]
struct Written {
    #[diesel(sql_type = sql_types::Text)]
    row: String,
}

async fn text(conn: &mut AsyncPgConnection, query: &str) -> Result<String, Error> {
    let written: Written = diesel::sql_query(query).get_result(conn).await?;
    Ok(written.row)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_writes_its_arguments_and_returns_the_event_id() -> Result<()> {
    let mut conn = database().await?;
    let call = "select outbox_enqueue('things.v1', '42', 'thing_made', 3, '{\"b\": 1, \"a\": 2}',
        headers => '{\"tenant\": \"7\"}', traceparent => '00-1-2-01')::text as row";
    let id = text(&mut conn, call).await?;
    let written = "select concat_ws(' ', event_id, topic, key, event_type, aggregate_version,
            convert_from(payload, 'UTF8'), headers, traceparent, xid is not null, seq) as row
        from outbox";
    let expected = format!(
        r#"{id} things.v1 42 thing_made 3 {{"a": 2, "b": 1}} {{"tenant": "7"}} 00-1-2-01 t 1"#
    );
    assert_eq!(text(&mut conn, written).await?, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_null_payload_is_a_tombstone_and_the_event_id_is_optional() -> Result<()> {
    let mut conn = database().await?;
    let given = "0199d0a0-0000-7000-8000-000000000001";
    let call = format!(
        "select outbox_enqueue('things.v1', '42', 'thing_gone', 4, null, event_id => '{given}')::text as row"
    );
    assert_eq!(text(&mut conn, &call).await?, given);
    // JSON null as well, which many drivers send for an absent value.
    let call = "select outbox_enqueue('things.v1', '42', 'thing_gone', 5, ' null ')::text as row";
    text(&mut conn, call).await?;
    let tombstones = "select count(*)::text as row from outbox where payload is null";
    assert_eq!(text(&mut conn, tombstones).await?, "2");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_call_leaves_no_event() -> Result<()> {
    let mut conn = database().await?;
    conn.batch_execute(
        "begin;
         insert into things values (1);
         select outbox_enqueue('things.v1', '1', 'thing_made', 1, '{}');
         rollback",
    )
    .await?;
    assert_eq!(rows(&mut conn).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_argument_is_rejected_by_name() -> Result<()> {
    let mut conn = database().await?;
    let good = ["'t'", "'k'", "'e'", "1", "'{}'", "null"];
    for (place, argument, message) in [
        (0, "null", "invalid topic null"),
        (0, "''", "invalid topic ''"),
        (0, "'a b'", "invalid topic 'a b'"),
        (0, "'..'", "invalid topic '..'"),
        (0, "repeat('a', 250)", "invalid topic 'aaa"),
        (1, "null", "key must be 1 to 1024 bytes, got null"),
        (1, "''", "key must be 1 to 1024 bytes, got 0"),
        (
            1,
            "repeat('a', 1025)",
            "key must be 1 to 1024 bytes, got 1025",
        ),
        (2, "null", "event_type must not be null"),
        (2, "''", "event_type must not be empty"),
        (3, "null", "aggregate_version must not be null"),
        (5, "'[]'", "headers must be a JSON object of strings"),
        (
            5,
            "'{\"a\": 1}'",
            "headers must be a JSON object of strings",
        ),
        (
            5,
            "'{\"a\": null}'",
            "headers must be a JSON object of strings",
        ),
        (5, "'{\"ce_id\": \"1\"}'", "header ce_id is reserved"),
    ] {
        let mut arguments = good;
        arguments[place] = argument;
        let call = format!(
            "select outbox_enqueue({})::text as row",
            arguments.join(", ")
        );
        let Err(Error::DatabaseError(_, info)) = text(&mut conn, &call).await else {
            panic!("{call} was accepted");
        };
        assert!(info.message().contains(message), "{}", info.message());
        assert!(info.hint().is_some(), "no hint for {message}");
    }
    assert_eq!(rows(&mut conn).await?, []);
    Ok(())
}
