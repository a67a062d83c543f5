//! Each committed row is published or reported as unpublishable: after a sequence was set back, with rows from other clusters,
//! and when responses don't arrive.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Postgres, Record, Sql, WorkDir, eventually};
use outbox_relay::{
    Level, ResetTo, check,
    config::{OnRejection, SinkKind},
    reset,
};

use crate::{
    for_each_sink,
    harness::{Database, Running, Session, Setup},
    silence::SilentProxy,
};

for_each_sink! {
    rows_with_repeated_seqs_are_all_published,
    a_source_that_halts_within_a_seq_repeats_no_row,
    a_relay_is_ready_only_after_it_has_read_a_page,
}

/// Returns the distinct event ids of the records.
fn event_ids(records: &[Record]) -> HashSet<&str> {
    records.iter().filter_map(|r| r.header("ce_id")).collect()
}

async fn write_rows(session: &Session, topic: &str, rows: usize) -> Result<()> {
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version)
         select '{topic}', 'key-' || n, 'made', 1 from generate_series(1, {rows}) as n"
    );
    Ok(session.client.batch_execute(&sql).await?)
}

const RESET_SEQUENCE: &str = "select setval('outbox_seq', 1, false)";

/// The sequence is set back, as after a restore without sequences: while the relay is down, and while it runs.
async fn rows_with_repeated_seqs_are_all_published(sink: SinkKind) -> Result<()> {
    let mut setup = Setup::new("set_back", sink).await?;
    setup.max_page_rows = 5;
    let session = Session::new(&setup.database).await?;
    write_rows(&session, &setup.topic, 25).await?;
    session.client.batch_execute(RESET_SEQUENCE).await?;
    write_rows(&session, &setup.topic, 25).await?;
    let relay = setup.start().await?;
    assert_eq!(event_ids(&setup.records(50).await?).len(), 50);
    session.client.batch_execute(RESET_SEQUENCE).await?;
    write_rows(&session, &setup.topic, 10).await?;
    assert_eq!(event_ids(&setup.records(60).await?).len(), 60);
    relay.stop().await?;
    assert_eq!(setup.records(60).await?.len(), 60, "duplicates");
    let found = check(&setup.config()?).await;
    let failed = found.iter().find(|finding| finding.level == Level::Fail);
    let failed = failed.context("a finding")?.to_string();
    let (_, statement) = failed.split_once(". Hint: ").context(failed.clone())?;
    assert!(failed.contains("is behind the outbox, which has a row with seq 25"));
    session.client.batch_execute(statement).await?;
    let found = check(&setup.config()?).await;
    assert!(
        found.iter().all(|finding| finding.level != Level::Fail),
        "{found:?}"
    );
    Ok(())
}

/// The checkpoint is between rows with the same seq.
async fn a_source_that_halts_within_a_seq_repeats_no_row(sink: SinkKind) -> Result<()> {
    let setup = Setup::new("one_seq", sink).await?;
    let session = Session::new(&setup.database).await?;
    let missing = Addresses::unique_name("missing");
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, seq, event_id)
         select case n when 7 then '{missing}' else '{}' end, 'key-' || n, 'made', 1, 1,
             ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid
         from generate_series(1, 12) as n",
        setup.topic
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    relay.wait_for_state(503, &missing).await?;
    setup.records(6).await?;
    // Several retries, and those of another relay.
    relay.wait_for_restarts(5).await?;
    relay.stop().await?;
    let relay = setup.start().await?;
    relay.wait_for_state(503, &missing).await?;
    assert_eq!(setup.records(6).await?.len(), 6);
    Addresses::shared().create_topic(&missing, 1).await?;
    assert_eq!(setup.records(11).await?.len(), 11);
    let records = Addresses::shared().read_topic(&missing).await?;
    assert_eq!(records.len(), 1);
    relay.stop().await
}

/// Writes rows with transaction ids ahead of this cluster's, as in a dump from a busier one.
async fn write_future_rows(session: &Session, topic: &str, rows: usize) -> Result<()> {
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, xid)
         select '{topic}', 'future', 'made', n, '1000000000000' from generate_series(1, {rows}) as n"
    );
    Ok(session.client.batch_execute(&sql).await?)
}

async fn failures(setup: &Setup) -> Result<String> {
    findings(setup, Level::Fail).await
}

async fn findings(setup: &Setup, level: Level) -> Result<String> {
    let found = check(&setup.config()?).await;
    let found = found.iter().filter(|finding| finding.level == level);
    let lines: Vec<String> = found.map(ToString::to_string).collect();
    Ok(lines.join("\n"))
}

/// Before the first leader, and with a publication that covers all tables.
#[tokio::test(flavor = "multi_thread")]
async fn future_rows_halt_the_source_before_anything_is_published() -> Result<()> {
    let setup = Setup::new("from_future", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let publication = "create publication everything for all tables";
    session.client.batch_execute(publication).await?;
    write_rows(&session, &setup.topic, 5).await?;
    write_future_rows(&session, &setup.topic, 3).await?;
    let command = "outbox-relay reset --source test";
    let failures_before = failures(&setup).await?;
    assert!(failures_before.contains(command), "{failures_before}");
    let relay = setup.start().await?;
    let text = relay.wait_for_state(503, command).await?;
    assert!(text.contains("test: halted"), "{text}");
    relay.wait_for_restarts(3).await?;
    assert_eq!(setup.records(0).await?, []);
    // While the relay runs, which leads only briefly at each retry.
    reset(&setup.config()?.sources[0], ResetTo::Beginning).await?;
    assert_eq!(event_ids(&setup.records(8).await?).len(), 8);
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    assert_eq!(failures(&setup).await?, "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn future_rows_halt_a_publishing_source() -> Result<()> {
    let setup = Setup::new("future_comes", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let relay = setup.start().await?;
    relay.wait_for_readiness(200).await?;
    write_future_rows(&session, &setup.topic, 3).await?;
    relay.wait_for_state(503, "test: halted").await?;
    write_rows(&session, &setup.topic, 5).await?;
    let adopt = "select outbox_adopt_foreign_rows()";
    session.client.batch_execute(adopt).await?;
    assert_eq!(event_ids(&setup.records(8).await?).len(), 8);
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// As in an upgrade by logical replication: the rows have ids of transactions that completed long ago in this cluster.
#[tokio::test(flavor = "multi_thread")]
async fn replicated_rows_with_old_transaction_ids_are_published() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let postgres = Postgres::start(&work_dir, &["fsync=off", "wal_level=logical"]).await?;
    let admin = Sql::connect(postgres.admin_url()).await?;
    let url_of = |name: &str| {
        postgres
            .admin_url()
            .replace("/postgres?", "/")
            .rsplit_once('/')
            .map(|(server, _)| format!("{server}/{name}"))
            .context("a URL with a database")
    };
    for name in ["publisher", "subscriber"] {
        admin
            .batch_execute(&format!("create database {name}"))
            .await?;
    }
    let publisher = Database::at(url_of("publisher")?).await?;
    let mut setup = Setup::new("replicated", SinkKind::Kafka).await?;
    setup.database = Database::at(url_of("subscriber")?).await?;
    let relay = setup.start().await?;
    relay.wait_for_readiness(200).await?;
    let writer = Session::new(&publisher).await?;
    writer
        .client
        .batch_execute(
            "create publication outbox for table outbox;
             alter table aggregates replica identity full",
        )
        .await?;
    write_rows(&writer, &setup.topic, 20).await?;
    let here = Session::new(&setup.database).await?;
    // Transactions that move the cluster past those ids.
    for _ in 0..20 {
        here.change("other").await?;
    }
    writer
        .client
        .batch_execute("select pg_create_logical_replication_slot('outbox', 'pgoutput')")
        .await?;
    let subscribe = format!(
        "create subscription outbox connection '{}' publication outbox
         with (create_slot = false, slot_name = 'outbox')",
        publisher.url
    );
    here.client.batch_execute(&subscribe).await?;
    assert_eq!(event_ids(&setup.records(20).await?).len(), 20);
    write_rows(&writer, &setup.topic, 5).await?;
    assert_eq!(event_ids(&setup.records(25).await?).len(), 25);
    // Unverifiable facts are reported as unknown.
    let unknown = findings(&setup, Level::Unknown).await?;
    assert!(unknown.contains("a subscription writes to it"), "{unknown}");
    assert!(
        unknown.contains("could not check the transaction ids of"),
        "{unknown}"
    );
    relay.stop().await?;
    here.client
        .batch_execute("drop subscription outbox")
        .await?;
    postgres.process.stop().await;
    Ok(())
}

/// Withholds the response to each statement between the election and the first page.
async fn a_relay_is_ready_only_after_it_has_read_a_page(sink: SinkKind) -> Result<()> {
    /// A part of each statement.
    const PARKED_KEYS: &str = "select topic, key from parked_key";
    const FIRST_PAGE: &str = "as older (xid)";
    let mut setup = Setup::new("first_page", sink).await?;
    let session = Session::new(&setup.database).await?;
    // Parked keys are loaded only if there are rejected events.
    let sql = "insert into relay_parked (source, seq, event_id, topic, key, event_type, error)
        values ('test', 0, gen_random_uuid(), 'topic', 'parked', 'made', 'rejected')";
    session.client.batch_execute(sql).await?;
    setup.write(&session, "a").await?;
    let database_url = setup.database.url.clone();
    // The parked events, the settings of the reader's session, the first page.
    for word in [PARKED_KEYS, "enable_bitmapscan", FIRST_PAGE] {
        // A standby is ready. The session of the last relay ends a moment after the relay.
        let leaders = "select count(*) from pg_locks join pg_database on oid = database
            where locktype = 'advisory' and datname = current_database()";
        session.client.wait_for(leaders, 0).await?;
        let proxy = SilentProxy::start(&database_url, word).await?;
        setup.database.url = proxy.url().to_owned();
        let relay = setup.start().await?;
        let is_page = word == FIRST_PAGE;
        never_ready_while(&relay, async || {
            proxy.wait_until_triggered().await?;
            match is_page {
                // A page may take longer than a test.
                true => tokio::time::sleep(Duration::from_secs(2)).await,
                false => drop(relay.wait_for_state(503, "did not respond within").await?),
            }
            Ok(())
        })
        .await
        .context(word)?;
        if !is_page {
            proxy.make_transparent();
            relay.wait_for_readiness(200).await?;
        }
        relay.stop().await?;
    }
    Ok(())
}

/// Polls `/readyz` during `waiting` and fails if the relay is ready.
async fn never_ready_while(
    relay: &Running,
    waiting: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let polling = async {
        loop {
            let (code, text) = outbox_relay::ask(relay.admin_addr, "/readyz").await?;
            anyhow::ensure!(code == 503, "{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        done = waiting() => done,
        failed = polling => failed,
    }
}

/// A crash truncates an unlogged table, with its committed rows.
#[tokio::test(flavor = "multi_thread")]
async fn check_finds_unlogged_tables() -> Result<()> {
    let setup = Setup::new("unlogged", SinkKind::Kafka).await?;
    let client = setup.database.connect().await?;
    client
        .batch_execute("alter table outbox_3 set unlogged; alter table relay_parked set unlogged")
        .await?;
    let failures = failures(&setup).await?;
    for table in ["outbox_3", "relay_parked"] {
        assert!(
            failures.contains(&format!("alter table {table} set logged")),
            "{failures}"
        );
    }
    Ok(())
}

/// Creates a table without a unique key, with event ids of type text.
async fn loose_setup(test: &str) -> Result<(Setup, Session)> {
    let mut setup = Setup::new(test, SinkKind::Kafka).await?;
    setup.mapping = crate::mapping::mapping(&format!(
        "table = 'public.events'
         topic = '{}'
         [source.columns]
         event_id = 'id'
         event_type = 'kind'
         payload = 'body'",
        setup.topic
    ))?;
    let session = Session::new(&setup.database).await?;
    let table = "create table events (
            id text, key text, kind text default 'made', body text,
            xid xid8 default pg_current_xact_id(),
            seq bigint generated by default as identity,
            constraint events_relay_columns check (xid is not null and seq is not null)
        );
        create index on events (seq);
        create index on events (xid, seq)";
    session.client.batch_execute(table).await?;
    Ok((setup, session))
}

/// A page ends within one seq, and the next row is unreadable.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_row_halts_the_source_wherever_a_page_ends() -> Result<()> {
    let (mut setup, session) = loose_setup("ends_within").await?;
    setup.max_page_rows = 1;
    let rows = "insert into events (id, key, seq)
        select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0')), n, 1 from generate_series(1, 3) as n;
        insert into events (id, key, seq) values ('no-uuid', 'x', 2), (gen_random_uuid(), 'y', 3)";
    session.client.batch_execute(rows).await?;
    let failures = failures(&setup).await?;
    assert!(
        failures.contains("failed to read the row with seq 2"),
        "{failures}"
    );
    let relay = setup.start().await?;
    let halted = "halted: failed to read the row with seq 2";
    relay.wait_for_state(503, halted).await?;
    assert_eq!(setup.records(3).await?.len(), 3);
    // The unreadable row shares its seq with others.
    session
        .client
        .batch_execute("update events set seq = 1 where id = 'no-uuid'")
        .await?;
    relay.stop().await?;
    reset(&setup.config()?.sources[0], ResetTo::Beginning).await?;
    let relay = setup.start().await?;
    let halted = "halted: failed to read the row with seq 1";
    relay.wait_for_state(503, halted).await?;
    let repair = "update events set id = gen_random_uuid() where id = 'no-uuid'";
    session.client.batch_execute(repair).await?;
    eventually("all five", async || {
        let records = Addresses::shared().read_topic(&setup.topic).await?;
        Ok((event_ids(&records).len() == 5).then_some(()))
    })
    .await?;
    relay.stop().await
}

/// Such rows differ only in their other columns.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_share_seq_and_event_id_are_all_published() -> Result<()> {
    let (mut setup, session) = loose_setup("twins").await?;
    let rows = "insert into events (id, key, seq)
        select '00000000-0000-4000-8000-000000000007', 'k' || n, 7 from generate_series(1, 5) as n;
        insert into events (id, key, seq) values (gen_random_uuid(), 'other', 7), (gen_random_uuid(), 'last', 8)";
    session.client.batch_execute(rows).await?;
    for (times, max_page_rows) in [1, 3, 100].into_iter().enumerate() {
        setup.max_page_rows = max_page_rows;
        let expected = 7 * (times + 1);
        let relay = setup.start().await?;
        let records = setup.records(expected).await?;
        for key in ["k1", "k2", "k3", "k4", "k5", "other", "last"] {
            let of_key = records.iter().filter(|record| record.key == key);
            assert_eq!(of_key.count(), times + 1, "{key}, {max_page_rows}");
        }
        relay.stop().await?;
        assert_eq!(setup.records(expected).await?.len(), expected, "duplicates");
        reset(&setup.config()?.sources[0], ResetTo::Beginning).await?;
    }
    Ok(())
}

/// Only one of them could be stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_row_that_shares_seq_and_event_id_halts_the_source() -> Result<()> {
    for on_rejection in [OnRejection::ParkKey, OnRejection::DeadLetter] {
        let (mut setup, session) = loose_setup("rejected_twin").await?;
        setup.on_rejection = on_rejection;
        let missing = Addresses::unique_name("missing");
        setup.mapping = crate::mapping::mapping(
            "table = 'public.events'
             topic = '${kind}'
             [source.columns]
             event_id = 'id'
             event_type = 'kind'
             payload = 'body'",
        )?;
        let rows = format!(
            "insert into events (id, key, seq, kind) values
                 ('00000000-0000-4000-8000-000000000007', 'good', 7, '{}'),
                 ('00000000-0000-4000-8000-000000000007', 'bad', 7, '{missing}')",
            setup.topic
        );
        session.client.batch_execute(&rows).await?;
        let relay = setup.start().await?;
        let text = relay
            .wait_for_state(503, "shares its seq and its event id")
            .await?;
        assert!(text.contains("halted"), "{text}");
        // The repair from the hint.
        let repair = "update events set id = gen_random_uuid() where key = 'bad'";
        session.client.batch_execute(repair).await?;
        let (table, count) = match on_rejection {
            OnRejection::ParkKey => ("relay_parked", "select count(*) from relay_parked"),
            _ => (
                "relay_dead_letters",
                "select count(*) from relay_dead_letters",
            ),
        };
        eventually(table, async || {
            Ok((session.client.count(count).await? == 1).then_some(()))
        })
        .await?;
        let sql = format!("select key from {table}");
        let key: String = session.client.query_one(&sql, &[]).await?.get(0);
        assert_eq!(key, "bad");
        let records = Addresses::shared().read_topic(&setup.topic).await?;
        assert!(records.iter().all(|record| record.key == "good"));
        assert!(!records.is_empty());
        relay.stop().await?;
    }
    Ok(())
}

/// Postgres fails to read the page, although the rows before the damaged one are readable.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_value_halts_the_source_after_all_earlier_rows() -> Result<()> {
    let (setup, session) = loose_setup("damaged").await?;
    // The error of Postgres for a value with lost TOAST chunks.
    let damage =
        "create or replace function relay_payload(text) returns bytea language plpgsql immutable as $$
        begin
            if $1 = 'damaged' then
                raise exception 'missing chunk number 3 for toast value' using errcode = 'XX001';
            end if;
            return convert_to($1, 'UTF8');
        end $$";
    session.client.batch_execute(damage).await?;
    let rows = "insert into events (id, key, body)
        select gen_random_uuid(), n, case n when 10 then 'damaged' end from generate_series(1, 11) as n";
    session.client.batch_execute(rows).await?;
    let relay = setup.start().await?;
    let text = relay
        .wait_for_state(503, "halted: failed to read the row with seq 10")
        .await?;
    assert!(text.contains("missing chunk number"), "{text}");
    assert_eq!(setup.records(9).await?.len(), 9);
    session
        .client
        .batch_execute("delete from events where key = '10'")
        .await?;
    setup.records(10).await?;
    relay.stop().await
}

/// Each constraint seems to reject null, but accepts it.
#[tokio::test(flavor = "multi_thread")]
async fn check_recognizes_constraints_that_accept_null() -> Result<()> {
    let (setup, session) = loose_setup("fooled").await?;
    for constraint in [
        "check ((xid is not null and seq is not null and key is not null) = (kind = 'ready'))",
        "check ((kind is null and xid is not null and seq is not null and key is null) is not true)",
        "check (coalesce(kind <> 'ready', false and xid is not null and seq is not null and true))",
        "check (xid is not null and seq is not null) no inherit",
        "check (xid is not null or \"(xid IS NOT NULL)\" is not null)",
    ] {
        let replace = format!(
            "alter table events drop constraint events_relay_columns;
             alter table events add column if not exists \"(xid IS NOT NULL)\" text;
             alter table events alter seq drop not null;
             alter table events add constraint events_relay_columns {constraint}"
        );
        // A default instead of an identity, which would reject null.
        let identity = "alter table events alter seq drop identity if exists;
            create sequence if not exists events_seq owned by events.seq;
            alter table events alter seq set default nextval('events_seq')";
        session.client.batch_execute(identity).await?;
        session.client.batch_execute(&replace).await?;
        let failures = failures(&setup).await?;
        assert!(
            failures.contains("null, and a row with null"),
            "{constraint}: {failures}"
        );
    }
    // These constraints reject null.
    for constraint in [
        "check (xid is not null and (seq is not null and key is not null)) not valid",
        "check (\"(xid IS NOT NULL)\" is not null and xid is not null and seq is not null)",
    ] {
        let replace = format!(
            "alter table events drop constraint events_relay_columns;
             alter table events add constraint events_relay_columns {constraint}"
        );
        session.client.batch_execute(&replace).await?;
        assert_eq!(failures(&setup).await?, "", "{constraint}");
    }
    Ok(())
}

/// Facts that `check` can't verify are reported as unknown.
#[tokio::test(flavor = "multi_thread")]
async fn check_reports_what_it_can_not_verify() -> Result<()> {
    let (setup, session) = loose_setup("through").await?;
    let function = "create function other_numbers() returns trigger language plpgsql as
        $$begin new.seq = 1; return new; end$$";
    session.client.batch_execute(function).await?;
    for (sql, undo, line) in [
        (
            "create trigger numbers before insert on events for each row execute function other_numbers()",
            "drop trigger numbers on events",
            "could not check that trigger numbers of",
        ),
        (
            "create rule nothing as on insert to events do instead nothing",
            "drop rule nothing on events",
            "could not check how rule nothing of",
        ),
        (
            "create table of_events () inherits (events)",
            "drop table of_events",
            "could not check the tables that inherit from",
        ),
        (
            "alter table events replica identity full;
             create publication filtered for table events where (key = 'a');
             alter table events alter id set not null, add unique (id);
             alter table events replica identity using index events_id_key",
            "drop publication filtered",
            "which has a row filter: could not check",
        ),
    ] {
        session.client.batch_execute(sql).await?;
        let unknown = findings(&setup, Level::Unknown).await?;
        assert!(unknown.contains(line), "{line} in {unknown}");
        session.client.batch_execute(undo).await?;
        let unknown = findings(&setup, Level::Unknown).await?;
        assert!(!unknown.contains(line), "{line} in {unknown}");
    }
    let failing = [
        (
            "create publication everything for table events;
             alter table events replica identity using index events_id_key;
             alter table events drop constraint events_id_key",
            "has no replica identity",
        ),
        (
            "alter table events add primary key (id) deferrable; alter table events replica identity default",
            "has no replica identity",
        ),
        (
            "alter table events replica identity full; drop publication everything;
             create publication everything for table events (id, key)",
            "which has a column list",
        ),
        (
            "drop publication everything; alter table events alter seq drop identity;
             create sequence a; create sequence b;
             alter table events alter seq set default
                 nextval(case current_date when '2000-01-01' then 'a'::regclass else 'b'::regclass end)",
            "gets its numbers from several sequences",
        ),
    ];
    for (sql, line) in failing {
        session.client.batch_execute(sql).await.context(sql)?;
        let failures = failures(&setup).await?;
        assert!(failures.contains(line), "{line} in {failures}");
    }
    Ok(())
}

/// The table `outbox` of the migrations.
#[tokio::test(flavor = "multi_thread")]
async fn check_finds_what_prevents_inserts_into_the_outbox() -> Result<()> {
    let setup = Setup::new("kept_out", SinkKind::Kafka).await?;
    let client = setup.database.connect().await?;
    let found = async |level| findings(&setup, level).await;
    for (sql, level, line) in [
        (
            "alter table outbox detach partition outbox_3",
            Level::Fail,
            "bucket 3 of outbox has no partition",
        ),
        (
            "alter table outbox attach partition outbox_3 for values in (3);
             alter table outbox alter bucket set default 0",
            Level::Note,
            "column bucket of outbox lacks the default that rotates through the partitions. Hint: alter table",
        ),
        (
            "alter table outbox alter event_id drop default",
            Level::Fail,
            "column event_id of outbox has no default. Hint: alter table outbox alter column event_id set default gen_random_uuid()",
        ),
        (
            "create schema elsewhere; create table elsewhere.relay_checkpoints ()",
            Level::Note,
            "schema elsewhere also has a table relay_checkpoints",
        ),
        (
            "alter sequence outbox_seq increment -1",
            Level::Fail,
            "counts down, which publishes the newest change of a key first. Hint: alter sequence outbox_seq increment 1",
        ),
    ] {
        client.batch_execute(sql).await?;
        let lines = found(level).await?;
        assert!(lines.contains(line), "{line} in {lines}");
    }
    // The hints are valid SQL statements.
    for finding in check(&setup.config()?).await {
        if let (Level::Fail | Level::Note, Some(hint)) = (finding.level, &finding.hint)
            && finding.subject == "test"
            && !hint.starts_with("Use one table relay_checkpoints")
        {
            client.batch_execute(hint).await.context(hint.clone())?;
        }
    }
    assert_eq!(found(Level::Fail).await?, "");
    Ok(())
}

/// Defaults of the database would break the relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_overrides_the_defaults_of_the_database() -> Result<()> {
    let setup = Setup::new("defaults", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let database = setup.database.url.rsplit('/').next().unwrap_or_default();
    let database = database.split('?').next().unwrap_or_default();
    for default in [
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
        "quote_all_identifiers = on",
    ] {
        let sql = format!("alter database \"{database}\" set {default}");
        session.client.batch_execute(&sql).await?;
    }
    write_rows(&session, &setup.topic, 5).await?;
    assert_eq!(failures(&setup).await?, "");
    let relay = setup.start().await?;
    setup.records(5).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// Otherwise unpublishable rows would go unnoticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_backlog_measurement_is_reported() -> Result<()> {
    let setup = Setup::new("unmeasured", SinkKind::Kafka).await?;
    let client = setup.database.connect().await?;
    client
        .batch_execute("alter table relay_dead_letters rename to moved")
        .await?;
    let relay = setup.start().await?;
    let text = relay
        .wait_for_state(200, "degraded: failed to measure the backlog")
        .await?;
    assert!(text.contains("relay_dead_letters"), "{text}");
    client
        .batch_execute("alter table moved rename to relay_dead_letters")
        .await?;
    eventually("no warning", async || {
        let text = relay.wait_for_readiness(200).await?;
        Ok((!text.contains("degraded")).then_some(()))
    })
    .await?;
    relay.stop().await
}
