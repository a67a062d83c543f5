//! Mapped outbox tables: their columns and topics.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use devstack::{Addresses, Record, Sql, WorkDir, eventually, split_statements};
use outbox_relay::{
    Level, ResetTo, check,
    config::{Config, Mapping, OnRejection, SinkKind},
    reset,
};
use tokio_util::sync::CancellationToken;

use crate::{
    for_each_sink,
    harness::{Database, Setup},
};

const COLUMNS_ONLINE: &str = include_str!("../../sql/columns-online.sql");
const DELETE_PUBLISHED: &str = include_str!("../../sql/delete-published.sql");

/// The table of Debezium's outbox event router.
const OUTBOXEVENT: &str = "create table outboxevent (
    id uuid primary key default gen_random_uuid(),
    aggregatetype text not null,
    aggregateid text not null,
    type text not null,
    payload jsonb)";

/// Returns the mapping of Debezium's table, with Debezium's headers.
fn debezium_mapping(topic: &str) -> Result<Mapping> {
    mapping(&format!(
        "table = 'public.outboxevent'
         topic = '{topic}.${{aggregatetype}}'
         [source.columns]
         event_id = 'id'
         key = 'aggregateid'
         event_type = 'type'
         [source.header_columns]
         id = 'id'"
    ))
}

/// Parses the mapping in these settings of a source.
pub(crate) fn mapping(settings: &str) -> Result<Mapping> {
    let config = format!(
        "kafka.brokers = 'localhost:9092'\n[[source]]\nname = 'test'\n\
         database_url = 'postgres://localhost/test'\n{settings}"
    );
    let work_dir = WorkDir::new()?;
    let path = work_dir.write("outbox-relay.toml", &config)?;
    Ok(Config::load(&path)?.sources[0].mapping.clone())
}

/// Runs a file statement by statement, like psql.
async fn run_file(client: &Sql, file: &str) -> Result<()> {
    for statement in split_statements(file) {
        client.batch_execute(&statement).await?;
    }
    Ok(())
}

/// Creates a database with Debezium's table and the relay's columns.
async fn debezium_setup(test: &str) -> Result<(Setup, Sql)> {
    let mut setup = Setup::new(test, SinkKind::Kafka).await?;
    setup.mapping = debezium_mapping(&setup.topic)?;
    setup.topic += ".order";
    Addresses::shared().create_topic(&setup.topic, 3).await?;
    let client = setup.database.connect().await?;
    client.batch_execute(OUTBOXEVENT).await?;
    run_file(&client, COLUMNS_ONLINE).await?;
    // A second run, as after a lock_timeout.
    run_file(&client, COLUMNS_ONLINE).await?;
    Ok((setup, client))
}

/// Creates a database with a table of two partitions, by type.
async fn partitioned_setup(test: &str) -> Result<(Setup, Sql)> {
    let mut setup = Setup::new(test, SinkKind::Kafka).await?;
    setup.mapping = debezium_mapping(&setup.topic)?;
    setup.topic += ".order";
    Addresses::shared().create_topic(&setup.topic, 3).await?;
    let client = setup.database.connect().await?;
    let table = "create table outboxevent (
            id uuid default gen_random_uuid(), aggregatetype text not null default 'order',
            aggregateid text not null, type text not null, payload jsonb,
            xid xid8 default pg_current_xact_id(), seq bigint generated always as identity
        ) partition by list (type);
        create table one partition of outboxevent for values in ('1');
        create table two partition of outboxevent for values in ('2');
        create index on outboxevent (seq);
        create index on outboxevent (xid, seq)";
    client.batch_execute(table).await?;
    Ok((setup, client))
}

for_each_sink! {
    columns_set_the_partition_and_the_timestamp,
}

fn placement_mapping(topic: &str) -> Result<Mapping> {
    mapping(&format!(
        "table = 'public.outboxevent'
         topic = '{topic}'
         [source.columns]
         event_id = 'id'
         key = 'aggregateid'
         event_type = 'type'
         partition = 'part'
         timestamp = 'at'"
    ))
}

/// As with the placements of Debezium's event router.
async fn columns_set_the_partition_and_the_timestamp(sink: SinkKind) -> Result<()> {
    let (mut setup, client) = debezium_setup("placement").await?;
    setup.sink = sink;
    setup.on_rejection = OnRejection::ParkKey;
    setup.mapping = placement_mapping(&setup.topic)?;
    let columns = "alter table outboxevent add part bigint, add at timestamptz";
    client.batch_execute(columns).await?;
    let rows = "insert into outboxevent (aggregatetype, aggregateid, type, part, at) values
        ('order', 'a', '1', 0, '2020-01-02T03:04:05.678Z'), ('order', 'a', '2', 1, null),
        ('order', 'a', '3', 2, '1969-12-31T23:59:59Z'), ('order', 'a', '4', 2, '2021-01-01T00:00:00Z'),
        ('order', 'b', '5', 7, null), ('order', 'c', '6', null, null),
        ('order', 'd', '7', 3000000000, null), ('order', 'e', '8', null, 'infinity')";
    client.batch_execute(rows).await?;
    let found = check(&setup.config()?).await;
    let failed = found.iter().find(|finding| finding.level == Level::Fail);
    assert!(failed.is_none(), "{failed:?}");
    let relay = setup.start().await?;
    // The first event of key a is published, the third is rejected, and the fourth is parked behind it.
    let records = setup.records(3).await?;
    let of = |kind| {
        let record = records
            .iter()
            .find(|record| record.header("ce_type") == Some(kind));
        record.map(|record| (record.partition, record.timestamp_ms))
    };
    assert_eq!(of("1"), Some((0, Some(1_577_934_245_678))));
    let recently = 1_700_000_000_000;
    assert!(of("2").is_some_and(|(partition, at)| partition == 1 && at > Some(recently)));
    assert!(of("6").is_some_and(|(_, at)| at > Some(recently)));
    let errors = "select string_agg(error, '; ' order by seq) from relay_parked";
    let errors = eventually("four rejections and an event behind one", async || {
        let count = client.count("select count(*) from relay_parked").await?;
        Ok(match count {
            5 => Some(client.query_one(errors, &[]).await?.get::<_, String>(0)),
            _ => None,
        })
    })
    .await?;
    let not_a_time = "its timestamp is not a time since 1970";
    assert_eq!(errors.matches(not_a_time).count(), 2, "{errors}");
    assert!(
        errors.contains("its partition is not an integer"),
        "{errors}"
    );
    assert_eq!(records.len(), 3);
    if sink == SinkKind::RdKafka {
        // It notices new partitions within five minutes.
        return relay.stop().await;
    }
    // What is parked keeps its partition.
    Addresses::shared().add_partitions(&setup.topic, 8).await?;
    client
        .batch_execute("update relay_parked set retry = true where key = 'b'")
        .await?;
    let records = setup.records(4).await?;
    let of_b = records.iter().find(|record| record.key == "b");
    assert_eq!(of_b.map(|record| record.partition), Some(7));
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn check_rejects_types_that_are_no_partition_or_timestamp() -> Result<()> {
    let (mut setup, client) = debezium_setup("placement_types").await?;
    setup.mapping = placement_mapping(&setup.topic)?;
    let columns = "create domain small as numeric;
        alter table outboxevent add part small, add at date";
    client.batch_execute(columns).await?;
    let found = check(&setup.config()?).await;
    let failed = found.iter().filter(|found| found.level == Level::Fail);
    let failed: Vec<String> = failed.map(ToString::to_string).collect();
    let [at, part] = &*failed else {
        panic!("{failed:?}");
    };
    assert!(
        at.contains("column at of \"public\".\"outboxevent\" is of type date"),
        "{at}"
    );
    assert!(
        part.contains("column part of \"public\".\"outboxevent\" is of type numeric"),
        "{part}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_debeziums_table_becomes_the_same_record_as_with_debezium() -> Result<()> {
    let (setup, client) = debezium_setup("debezium").await?;
    let relay = setup.start().await?;
    let sql = "insert into outboxevent (aggregatetype, aggregateid, type, payload)
        values ('order', '42', 'OrderPlaced', '{\"total\": 7}') returning id::text";
    let id: String = client.query_one(sql, &[]).await?.get(0);
    let records = setup.records(1).await?;
    let record = &records[0];
    assert_eq!(record.key, "42");
    assert_eq!(record.payload.as_deref(), Some(&br#"{"total": 7}"#[..]));
    for name in ["id", "ce_id"] {
        assert_eq!(record.header(name), Some(id.as_str()), "{record:?}");
    }
    assert_eq!(record.header("ce_type"), Some("OrderPlaced"));
    // The table has no columns for these.
    assert_eq!(record.header("ce_aggregateversion"), None);
    assert_eq!(record.header("ce_time"), None);
    // The measurements are of this table.
    eventually("an empty backlog and a size", async || {
        let (_, text) = outbox_relay::ask(relay.admin_addr, "/status").await?;
        let [status]: [serde_json::Value; 1] = serde_json::from_str(&text)?;
        let is_measured = status["pending_rows"] == 0 && status["outbox_bytes"].as_i64() > Some(0);
        Ok(is_measured.then_some(()))
    })
    .await?;
    relay.stop().await
}

/// Postgres can't create an index on a partitioned table concurrently.
#[tokio::test(flavor = "multi_thread")]
async fn columns_online_rejects_a_partitioned_table_with_the_manual_steps() -> Result<()> {
    let mut setup = Setup::new("by_hand", SinkKind::Kafka).await?;
    setup.mapping = debezium_mapping(&setup.topic)?;
    setup.topic += ".order";
    Addresses::shared().create_topic(&setup.topic, 3).await?;
    let client = setup.database.connect().await?;
    let table = "create table outboxevent (
            id uuid default gen_random_uuid(), aggregatetype text not null default 'order',
            aggregateid text not null, type text not null, payload jsonb
        ) partition by list (type);
        create table \"One\" partition of outboxevent for values in ('1');
        create table two partition of outboxevent for values in ('2')";
    client.batch_execute(table).await?;
    let rejected = run_file(&client, COLUMNS_ONLINE).await.unwrap_err();
    let rejected = rejected.downcast::<tokio_postgres::Error>()?;
    let hint = rejected.as_db_error().and_then(|err| err.hint());
    let hint = hint.context("no hint")?;
    let statements = hint.strip_prefix("Run: ").context("no statements")?;
    let (by_hand, rest) = statements.split_once(" Then ").context("no end")?;
    assert_eq!(rest, "remove part C from this file and run it again.");
    let changed = "select count(*) from information_schema.columns
        where table_name = 'outboxevent' and column_name in ('xid', 'seq')";
    assert_eq!(client.count(changed).await?, 0);

    run_file(&client, by_hand).await?;
    let (before, part_c) = (COLUMNS_ONLINE.split_once("-- C.")).context("no part C")?;
    let (_, part_d) = part_c.split_once("-- D.").context("no part D")?;
    run_file(&client, &format!("{before}-- D.{part_d}")).await?;
    let rows = "insert into outboxevent (aggregateid, type)
        select n, 1 + n % 2 from generate_series(1, 10) as n";
    client.batch_execute(rows).await?;
    let found = check(&setup.config()?).await;
    let failures = found.iter().filter(|finding| finding.level == Level::Fail);
    assert_eq!(failures.count(), 0, "{found:?}");
    let relay = setup.start().await?;
    setup.records(10).await?;
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_of_all_types_and_quoted_names_are_published() -> Result<()> {
    let mut setup = Setup::new("types", SinkKind::Kafka).await?;
    let client = setup.database.connect().await?;
    for (kind, value, expected) in [
        ("bytea", r"'\x00ff'::bytea", &b"\x00\xff"[..]),
        ("text", "'a\u{e4}'", "a\u{e4}".as_bytes()),
        ("varchar(9)", "'b'", b"b"),
        ("json", r#"'{"b":1,  "a":2}'"#, br#"{"b":1,  "a":2}"#),
        ("jsonb", r#"'{"b":1,"a":2}'"#, br#"{"a": 2, "b": 1}"#),
    ] {
        setup.topic = Addresses::unique_name("types");
        Addresses::shared().create_topic(&setup.topic, 1).await?;
        client
            .batch_execute(&format!(
                "drop schema if exists \"My App\" cascade;
                 delete from relay_checkpoints;
                 create schema \"My App\";
                 create table \"My App\".\"Out\"\"box\" (
                     n bigint generated always as identity, tx xid8 default pg_current_xact_id(),
                     uid text default gen_random_uuid(), \"order\" int, \"What; --\" text,
                     destination text, body {kind}, version int, extra json, trace text,
                     at timestamp default '2026-01-02 03:04:05', tenant int, region text);
                 create index on \"My App\".\"Out\"\"box\" (n);
                 create index on \"My App\".\"Out\"\"box\" (tx, n);
                 insert into \"My App\".\"Out\"\"box\"
                     (\"order\", \"What; --\", destination, body, version, extra, trace, tenant)
                 values (7, 'changed', '{}', {value}, 3, '{{\"a\":\"b\"}}', '00-1-2-01', 9)",
                setup.topic
            ))
            .await?;
        setup.mapping = mapping(
            r#"
            table = 'My App.Out"box'
            topic = '${destination}'
            [source.columns]
            xid = 'tx'
            seq = 'n'
            event_id = 'uid'
            key = 'order'
            event_type = 'What; --'
            payload = 'body'
            aggregate_version = 'version'
            headers = 'extra'
            traceparent = 'trace'
            created_at = 'at'
            [source.header_columns]
            tenant = 'tenant'
            region = 'region'
            "#,
        )?;
        let relay = setup.start().await?;
        let records = setup.records(1).await?;
        relay.stop().await?;
        let record = &records[0];
        assert_eq!(record.payload.as_deref(), Some(expected), "{kind}");
        assert_eq!(record.key, "7");
        for (name, value) in [
            ("ce_type", Some("changed")),
            ("ce_aggregateversion", Some("3")),
            ("traceparent", Some("00-1-2-01")),
            ("a", Some("b")),
            ("tenant", Some("9")),
            // A null column makes no header.
            ("region", None),
        ] {
            assert_eq!(record.header(name), value, "{name} of {record:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_row_of_a_mapped_table_is_published() -> Result<()> {
    let (setup, client) = debezium_setup("late_row").await?;
    let insert = |key: &str| {
        format!(
            "insert into outboxevent (aggregatetype, aggregateid, type, payload)
             values ('order', '{key}', 'OrderPlaced', '{{}}')"
        )
    };
    client.batch_execute("begin").await?;
    client.batch_execute(&insert("late")).await?;
    let other = setup.database.connect().await?;
    let relay = setup.start().await?;
    other.batch_execute(&insert("early")).await?;
    assert_eq!(keys(&setup.records(1).await?), ["early"]);
    client.batch_execute("commit").await?;
    assert_eq!(setup.records(2).await?.len(), 2);
    relay.stop().await
}

fn keys(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.key.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_row_of_a_mapped_table_is_stored_and_can_be_published_again() -> Result<()> {
    let (mut setup, client) = debezium_setup("rejected").await?;
    let topic = setup.topic.clone();
    for (on_rejection, table) in [
        (OnRejection::DeadLetter, "relay_dead_letters"),
        (OnRejection::ParkKey, "relay_parked"),
    ] {
        setup.on_rejection = on_rejection;
        // The topic `nowhere` does not exist, so its two events are rejected. The last one is accepted.
        let events = "insert into outboxevent (aggregatetype, aggregateid, type, payload)
            select kind, 'a', 'T', '{\"n\": 1}'
            from unnest(array['nowhere', 'nowhere', 'order']) as kind";
        client.batch_execute(events).await?;
        let relay = setup.start().await?;
        let query = format!("select count(*) from {table} where payload = '{{\"n\": 1}}'");
        client.wait_for(&query, 2).await?;
        relay.stop().await?;
        let missing = topic.replace(".order", ".nowhere");
        let of_missing = format!("{query} and topic = '{missing}' and aggregate_version is null");
        assert_eq!(client.count(&of_missing).await?, 2);
    }
    let missing = topic.replace(".order", ".nowhere");
    assert_eq!(setup.records(2).await?.len(), 2);
    // After a reset all rows are published.
    Addresses::shared().create_topic(&missing, 1).await?;
    let source = &setup.config()?.sources[0];
    let rejected = reset(source, ResetTo::UnixSeconds(0.0)).await.unwrap_err();
    assert!(format!("{rejected:#}").contains("--to-seq"), "{rejected:#}");
    assert_eq!(reset(source, ResetTo::Beginning).await?, 0);
    let relay = setup.start().await?;
    assert_eq!(setup.records(4).await?.len(), 4);
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_fails_on_rows_of_another_cluster() -> Result<()> {
    let (setup, client) = debezium_setup("foreign").await?;
    let row = "insert into outboxevent (aggregatetype, aggregateid, type, xid)
        values ('order', 'a', 'T', '1000000000000')";
    client.batch_execute(row).await?;
    let source = &setup.config()?.sources[0];
    let error = reset(source, ResetTo::Beginning).await.unwrap_err();
    let error = format!("{error:#}");
    let (_, statement) = error.split_once("run `").context(error.clone())?;
    client
        .batch_execute(statement.trim_end_matches(['`', '.']))
        .await?;
    reset(source, ResetTo::Beginning).await?;
    let relay = setup.start().await?;
    assert_eq!(keys(&setup.records(1).await?), ["a"]);
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn adding_columns_under_load_loses_no_event() -> Result<()> {
    let mut setup = Setup::new("online", SinkKind::Kafka).await?;
    setup.mapping = debezium_mapping(&setup.topic)?;
    setup.topic += ".order";
    Addresses::shared().create_topic(&setup.topic, 3).await?;
    let client = setup.database.connect().await?;
    client.batch_execute(OUTBOXEVENT).await?;
    let file = "select pg_relation_filenode('outboxevent')";
    let before = client.count(file).await?;

    // The writers don't own the table.
    let role = Addresses::unique_name("writers");
    let grants = format!("create role {role}; grant insert, select on outboxevent to {role}");
    client.batch_execute(&grants).await?;
    let end = CancellationToken::new();
    let mut writers = Vec::new();
    for writer in 0..3 {
        let session = setup.database.connect().await?;
        session.batch_execute(&format!("set role {role}")).await?;
        writers.push(tokio::spawn(write_until(session, writer, end.clone())));
    }
    let written = "select count(*) from outboxevent";
    let wait_for_more = async || {
        let wanted = client.count(written).await? + 100;
        let more = async || Ok((client.count(written).await? >= wanted).then_some(()));
        eventually("100 more rows", more).await
    };
    wait_for_more().await?;
    run_file(&client, COLUMNS_ONLINE).await?;
    let without = "select count(*) from outboxevent where seq is null";
    let rows_before = client.count(without).await?;
    wait_for_more().await?;
    let relay = setup.start().await?;
    wait_for_more().await?;
    end.cancel();
    let mut committed = HashSet::new();
    for writer in writers {
        committed.extend(writer.await??);
    }

    // No row without the columns was inserted after the defaults.
    assert_eq!(client.count(without).await?, rows_before);
    assert!(rows_before >= 100);
    assert_eq!(
        client
            .count("select count(*) from outboxevent where (xid is null) <> (seq is null)")
            .await?,
        0
    );
    let theirs = client
        .query("select id::text from outboxevent where seq is null", &[])
        .await?;
    let theirs: HashSet<String> = theirs.iter().map(|row| row.get(0)).collect();
    let ours: HashSet<String> = committed.difference(&theirs).cloned().collect();
    let records = setup.records(ours.len()).await?;
    let published: HashSet<String> = (records.iter())
        .filter_map(|record| record.header("id").map(str::to_owned))
        .collect();
    assert_eq!(published, ours);
    assert_eq!(records.len(), ours.len(), "duplicates");
    // The table was not rewritten.
    assert_eq!(client.count(file).await?, before);

    // Published rows are deleted, and no others.
    let delete = DELETE_PUBLISHED.replace("'shop'", "'test'");
    eventually("published rows deleted", async || {
        run_file(&client, &delete).await?;
        let left = client
            .count("select count(*) from outboxevent where seq is not null")
            .await?;
        Ok((left == 0).then_some(()))
    })
    .await?;
    assert_eq!(client.count(without).await?, rows_before);
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_all_defects_of_a_mapped_table() -> Result<()> {
    let (setup, client) = debezium_setup("checked").await?;
    let row =
        "insert into outboxevent (aggregatetype, aggregateid, type) values ('order', 'a', 'T')";
    client.batch_execute(row).await?;
    let failures = async || {
        let found = check(&setup.config()?).await;
        let failures = found.iter().filter(|finding| finding.level == Level::Fail);
        Ok::<_, anyhow::Error>(
            failures
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n"),
        )
    };
    assert_eq!(failures().await?, "");
    for (sql, message) in [
        (
            "alter sequence outboxevent_seq cache 50",
            "outboxevent_seq caches 50 numbers for each session",
        ),
        (
            "alter sequence outboxevent_seq cache 1 cycle",
            "outboxevent_seq has CYCLE and restarts at its end",
        ),
        (
            "alter sequence outboxevent_seq no cycle increment -1 minvalue -100",
            "outboxevent_seq counts down",
        ),
        // MassTransit's definition.
        (
            "alter sequence outboxevent_seq increment 1;
             alter table outboxevent alter seq drop default, alter seq set not null,
                 alter seq add generated by default as identity (cache 50)",
            "outboxevent_seq_seq caches 50 numbers for each session",
        ),
        (
            "alter table outboxevent alter seq set cache 1",
            "outboxevent_seq_seq is behind the outbox",
        ),
        (
            "select setval('outboxevent_seq_seq', 100);
             create publication everything for all tables;
             alter table outboxevent drop constraint outboxevent_pkey",
            "outboxevent is in the publication everything and has no replica identity",
        ),
        (
            "alter table outboxevent replica identity full;
             alter table outboxevent drop constraint outboxevent_relay_columns",
            "column xid of \"public\".\"outboxevent\" accepts null",
        ),
        (
            "alter table outboxevent add check (xid is not null or seq is null);
             alter table outboxevent set unlogged",
            "outboxevent is unlogged",
        ),
        (
            "alter table outboxevent alter aggregatetype drop not null;
             insert into outboxevent (aggregateid, type) values ('a', 'T')",
            "its topic is null (a column in source.topic). Hint: Repair or delete the row.",
        ),
        (
            "alter table outboxevent rename id to uid",
            "column id of \"public\".\"outboxevent\" does not exist. Hint: Correct source.columns.event_id",
        ),
        (
            "drop index outboxevent_seq_idx",
            "no index on seq of outboxevent",
        ),
        (
            "alter table outboxevent alter xid drop default",
            "column xid of",
        ),
        (
            "alter table relay_dead_letters rename dead_lettered_at to at",
            "table relay_dead_letters lacks column dead_lettered_at",
        ),
        (
            "alter table relay_dead_letters rename at to dead_lettered_at;
             drop function relay_payload(jsonb)",
            "outbox-relay/sql/relay.sql",
        ),
        (
            "drop table outboxevent",
            "table \"public\".\"outboxevent\" does not exist",
        ),
    ] {
        client.batch_execute(sql).await?;
        let failures = failures().await?;
        assert!(failures.contains(message), "{message} in {failures}");
    }
    Ok(())
}

/// Unlike the table `outbox`, a mapped table may accept null.
#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_seq_are_counted_and_reported() -> Result<()> {
    let (setup, client) = debezium_setup("nulls").await?;
    let drop_constraint = "alter table outboxevent drop constraint outboxevent_relay_columns";
    client.batch_execute(drop_constraint).await?;
    // An ORM that maps the columns inserts null.
    let careless = "insert into outboxevent (aggregatetype, aggregateid, type, seq, xid)
        values ('order', 'a', 'T', null, default), ('order', 'b', 'T', default, null),
            ('order', 'c', 'T', null, null), ('order', 'd', 'T', default, default)
        returning id::text";
    client.batch_execute(careless).await?;
    let relay = setup.start().await?;
    assert_eq!(keys(&setup.records(1).await?), ["d"]);
    let text = relay.wait_for_state(200, "degraded: 3 rows of").await?;
    assert!(
        text.contains("are never published, because seq or transaction id is null")
            && text.contains("One of them is event "),
        "{text}"
    );
    let (_, status) = outbox_relay::ask(relay.admin_addr, "/status").await?;
    let [status]: [serde_json::Value; 1] = serde_json::from_str(&status)?;
    assert_eq!(status["unpublishable_rows"], 3, "{status}");
    assert_eq!(
        status["warnings"][0]["reason"], "unpublishable_rows",
        "{status}"
    );
    let (_, metrics) = outbox_relay::ask(relay.admin_addr, "/metrics").await?;
    for line in [
        "outbox_relay_unpublishable_rows{source=\"test\"} 3",
        "outbox_relay_degraded{source=\"test\",reason=\"unpublishable_rows\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    let found = check(&setup.config()?).await;
    let failed = found.iter().find(|finding| finding.level == Level::Fail);
    let failed = failed.context("a finding")?;
    assert!(failed.what.contains("accept null"), "{failed}");
    // As the hints say.
    let repair =
        "update outboxevent set xid = default, seq = default where xid is null or seq is null";
    client.batch_execute(repair).await?;
    let statement = failed.hint.as_deref().context("a statement")?;
    client.batch_execute(statement).await?;
    assert_eq!(setup.records(4).await?.len(), 4);
    assert!(client.batch_execute(careless).await.is_err(), "rejected");
    eventually("no warning", async || {
        let text = relay.wait_for_readiness(200).await?;
        Ok((!text.contains("degraded")).then_some(()))
    })
    .await?;
    let found = check(&setup.config()?).await;
    assert!(
        found.iter().all(|finding| finding.level != Level::Fail),
        "{found:?}"
    );
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_with_negative_seqs_are_published() -> Result<()> {
    let mut setup = Setup::new("below_one", SinkKind::Kafka).await?;
    setup.mapping = debezium_mapping(&setup.topic)?;
    setup.topic += ".order";
    Addresses::shared().create_topic(&setup.topic, 3).await?;
    let client = setup.database.connect().await?;
    let table = "create table outboxevent (
            id uuid default gen_random_uuid(), aggregatetype text not null default 'order',
            aggregateid text not null, type text not null default 'T', payload jsonb,
            xid xid8 not null default pg_current_xact_id(),
            seq bigint generated by default as identity (minvalue -60 start -60)
        );
        create index on outboxevent (seq);
        create index on outboxevent (xid, seq)";
    client.batch_execute(table).await?;
    let insert = "insert into outboxevent (aggregateid) select n from generate_series(1, 30) as n";
    client.batch_execute(insert).await?;
    let relay = setup.start().await?;
    setup.records(30).await?;
    client.batch_execute(insert).await?;
    client.batch_execute(insert).await?;
    assert_eq!(setup.records(90).await?.len(), 90);
    relay.stop().await?;
    assert_eq!(
        reset(&setup.config()?.sources[0], ResetTo::Beginning).await?,
        -61
    );
    let relay = setup.start().await?;
    assert_eq!(setup.records(180).await?.len(), 180);
    relay.stop().await
}

/// ORMs write JSON null for an absent value.
#[tokio::test(flavor = "multi_thread")]
async fn json_null_as_a_payload_is_a_tombstone() -> Result<()> {
    for kind in ["jsonb", "json"] {
        let (setup, client) = debezium_setup("json_null").await?;
        let alter =
            format!("alter table outboxevent alter payload type {kind} using payload::{kind}");
        client.batch_execute(&alter).await?;
        let rows = "insert into outboxevent (aggregatetype, aggregateid, type, payload)
            values ('order', 'a', 'T', ' null '), ('order', 'b', 'T', '{\"a\": null}')";
        client.batch_execute(rows).await?;
        let relay = setup.start().await?;
        let records = setup.records(2).await?;
        let payload_of = |key| {
            let record = records.iter().find(|record| record.key == key);
            record.map(|record| record.payload.clone())
        };
        assert_eq!(payload_of("a"), Some(None), "{kind}");
        assert_eq!(
            payload_of("b"),
            Some(Some(br#"{"a": null}"#.to_vec())),
            "{kind}"
        );
        relay.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_row_halts_the_source_and_is_reported() -> Result<()> {
    let (setup, client) = debezium_setup("no_key").await?;
    let nullable = "alter table outboxevent alter aggregateid drop not null";
    client.batch_execute(nullable).await?;
    // The last row of a full page.
    let last = i32::try_from(setup.max_page_rows)?;
    let rows = "insert into outboxevent (aggregatetype, aggregateid, type)
        select 'order', nullif(n, $1), 'T' from generate_series(1, $1 + 1) as n returning seq";
    let rows = client.query(rows, &[&last]).await?;
    let seq: i64 = rows[setup.max_page_rows - 1].get(0);
    let relay = setup.start().await?;
    let text = relay
        .wait_for_state(503, "failed to publish the row with seq")
        .await?;
    assert!(
        text.contains(&format!(
            "halted: failed to publish the row with seq {seq}: its key is null (source.columns.key)"
        )),
        "{text}"
    );
    let before = setup.max_page_rows - 1;
    assert_eq!(setup.records(before).await?.len(), before);
    client
        .batch_execute(&format!("delete from outboxevent where seq = {seq}"))
        .await?;
    setup.records(setup.max_page_rows).await?;
    relay.stop().await
}

/// Postgres fails to read the whole page.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_value_halts_the_source_after_all_earlier_rows() -> Result<()> {
    let (setup, client) = debezium_setup("no_uuid").await?;
    client
        .batch_execute("alter table outboxevent alter id drop default, alter id type text")
        .await?;
    let insert = async |id: &str| {
        let sql = format!(
            "insert into outboxevent (id, aggregatetype, aggregateid, type)
             select {id}, 'order', n, 'T' from generate_series(1, 20) as n"
        );
        client.batch_execute(&sql).await
    };
    insert("gen_random_uuid()").await?;
    insert("case n when 1 then 'not-a-uuid' else gen_random_uuid()::text end").await?;
    let seq = client
        .count("select seq from outboxevent where id = 'not-a-uuid'")
        .await?;
    let relay = setup.start().await?;
    let halted = format!("halted: failed to read the row with seq {seq}");
    let text = relay.wait_for_state(503, &halted).await?;
    assert!(
        text.contains(
            "\"not-a-uuid\". Hint: Repair the row whose value does not have the configured type"
        ),
        "{text}"
    );
    assert_eq!(setup.records(20).await?.len(), 20);
    // The relay measures the age itself, because the table has no creation time.
    eventually("an age of the pending rows", async || {
        let (_, text) = outbox_relay::ask(relay.admin_addr, "/status").await?;
        let [status]: [serde_json::Value; 1] = serde_json::from_str(&text)?;
        let is_old = status["oldest_pending_age_s"].as_f64() > Some(1.0);
        Ok((is_old && status["pending_rows"] == 20).then_some(()))
    })
    .await?;
    client
        .batch_execute("update outboxevent set id = gen_random_uuid() where id = 'not-a-uuid'")
        .await?;
    assert_eq!(setup.records(40).await?.len(), 40);
    relay.stop().await
}

/// Postgres reads the first row of each partition to merge them.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_row_does_not_block_earlier_rows_of_other_partitions() -> Result<()> {
    let (setup, client) = partitioned_setup("no_uuid_part").await?;
    let id = "alter table outboxevent alter id drop default, alter id type text";
    client.batch_execute(id).await?;
    let insert = |part: &str, id: &str, count: i64| {
        format!(
            "insert into outboxevent (id, aggregateid, type)
             select {id}, n, '{part}' from generate_series(1, {count}) as n"
        )
    };
    client
        .batch_execute(&insert("1", "gen_random_uuid()", 30))
        .await?;
    client
        .batch_execute(&insert("2", "'not-a-uuid'", 1))
        .await?;
    client
        .batch_execute(&insert("1", "gen_random_uuid()", 30))
        .await?;
    let seq = client.count("select seq from two").await?;
    let relay = setup.start().await?;
    let halted = format!("halted: failed to read the row with seq {seq}");
    relay.wait_for_state(503, &halted).await?;
    assert_eq!(setup.records(30).await?.len(), 30);
    client.batch_execute("delete from two").await?;
    assert_eq!(setup.records(60).await?.len(), 60);
    relay.stop().await
}

/// The relay does not publish rows from before the columns were added.
#[tokio::test(flavor = "multi_thread")]
async fn check_ignores_rows_without_a_seq() -> Result<()> {
    let (setup, client) = debezium_setup("old_rows").await?;
    let rows = "alter table outboxevent drop constraint outboxevent_relay_columns;
        insert into outboxevent (seq, xid, aggregatetype, aggregateid, type)
            select null, null, 'legacy', n, 'T' from generate_series(1, 1100) as n;
        alter table outboxevent add constraint outboxevent_relay_columns
            check (xid is not null and seq is not null) not valid;
        insert into outboxevent (aggregatetype, aggregateid, type)
            select 'order', n, 'T' from generate_series(1, 1100) as n;
        insert into outboxevent (aggregatetype, aggregateid, type) values ('newest', 'a', 'T')";
    client.batch_execute(rows).await?;
    let found = check(&setup.config()?).await;
    let failures = found.iter().filter(|finding| finding.level == Level::Fail);
    let failures: Vec<String> = failures.map(ToString::to_string).collect();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains(".newest"), "{failures:?}");
    Ok(())
}

/// The key exceeds the size limit of an index entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_too_long_to_be_parked_halts_the_source() -> Result<()> {
    let (mut setup, client) = debezium_setup("long_key").await?;
    setup.on_rejection = OnRejection::ParkKey;
    let rows = "insert into outboxevent (aggregatetype, aggregateid, type)
        values ('nobody', 'short', 'T'),
            ('nobody', (select string_agg(md5(n::text), '') from generate_series(1, 100) as n), 'T')";
    client.batch_execute(rows).await?;
    let relay = setup.start().await?;
    let text = relay.wait_for_state(503, "halted").await?;
    // The message contains only the start of the key.
    assert!(text.len() < 1_000, "{text}");
    assert_eq!(client.count("select count(*) from relay_parked").await?, 1);
    relay.stop().await
}

/// The topic exceeds the size limit of an index entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_too_long_to_be_parked_halts_the_source() -> Result<()> {
    let (mut setup, client) = debezium_setup("long_topic").await?;
    setup.on_rejection = OnRejection::ParkKey;
    let row = "insert into outboxevent (aggregatetype, aggregateid, type)
        select string_agg(md5(n::text), ''), 'a', 'T' from generate_series(1, 200) as n";
    client.batch_execute(row).await?;
    let relay = setup.start().await?;
    relay.wait_for_state(503, "invalid topic name").await?;
    let text = relay.wait_for_state(503, "test: halted").await?;
    assert!(text.contains("of topics of at most 249"), "{text}");
    relay.stop().await
}

/// Rows of different partitions can have the same ctid.
#[tokio::test(flavor = "multi_thread")]
async fn only_published_rows_of_a_partitioned_table_are_deleted() -> Result<()> {
    let (setup, client) = partitioned_setup("deleted").await?;
    let insert = |part: &str| {
        format!(
            "insert into outboxevent (aggregateid, type)
             select n, '{part}' from generate_series(1, 30) as n"
        )
    };
    client.batch_execute(&insert("1")).await?;
    let relay = setup.start().await?;
    setup.records(30).await?;
    relay.stop().await?;
    client.batch_execute(&insert("2")).await?;
    let delete = DELETE_PUBLISHED.replace("'shop'", "'test'");
    run_file(&client, &delete).await?;
    assert_eq!(client.count("select count(*) from one").await?, 0);
    assert_eq!(client.count("select count(*) from two").await?, 30);
    let relay = setup.start().await?;
    assert_eq!(setup.records(60).await?.len(), 60);
    relay.stop().await
}

/// Writes one event per transaction and rolls back every fifth one. Returns the committed ids.
async fn write_until(
    session: Sql,
    writer: usize,
    end: CancellationToken,
) -> Result<HashSet<String>> {
    let mut committed = HashSet::new();
    let insert = "insert into outboxevent (aggregatetype, aggregateid, type, payload)
        values ('order', $1, 'OrderPlaced', '{}') returning id::text";
    for turn in 0.. {
        if end.is_cancelled() {
            break;
        }
        session.batch_execute("begin").await?;
        let key = format!("{writer}-{}", turn % 10);
        let id: String = session.query_one(insert, &[&key]).await?.get(0);
        if turn % 5 == 0 {
            session.batch_execute("rollback").await?;
        } else {
            session.batch_execute("commit").await?;
            committed.insert(id);
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    Ok(committed)
}

/// Returns the catalog entries of the relay's own tables and functions.
async fn relay_catalog(client: &Sql) -> Result<Vec<String>> {
    let sql = "
        select concat_ws(' ', table_name, ordinal_position, column_name, data_type, is_nullable, column_default)
        from information_schema.columns
        where table_schema = 'public' and table_name like 'relay%'
        union all
        select concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
        from pg_constraint where conrelid::regclass::text like 'relay%' and contype <> 'n'
        union all
        select pg_get_indexdef(indexrelid) from pg_index where indrelid::regclass::text like 'relay%'
        union all
        select concat_ws(' ', oid::regclass, reloptions) from pg_class
        where relkind = 'r' and relname like 'relay%'
        union all
        select concat_ws(' ', attrelid::regclass, attname, attstattarget) from pg_attribute
        where attrelid::regclass::text like 'relay%' and attnum > 0
        union all
        select pg_get_functiondef(oid) from pg_proc where proname like 'relay%'
        order by 1";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_sql_creates_the_same_tables_as_the_migrations() -> Result<()> {
    let with_outbox = Database::new("with_outbox").await?;
    let url = Addresses::shared()
        .create_database(&Addresses::unique_name("alone"))
        .await?;
    let alone = Sql::connect(&url).await?;
    alone
        .batch_execute(include_str!("../../sql/relay.sql"))
        .await?;
    let catalog = relay_catalog(&alone).await?;
    assert!(catalog.len() > 40, "{catalog:?}");
    assert_eq!(catalog, relay_catalog(&with_outbox.connect().await?).await?);
    Ok(())
}
