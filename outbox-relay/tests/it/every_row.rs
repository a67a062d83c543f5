//! Every committed row is published, or the source says which one it cannot publish: where a sequence was set back, where
//! rows come from another cluster, and where the answers that the relay waits for do not come.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Home, Postgres, Record, Sql};
use outbox_relay::{Level, ResetTo, check, config::SinkKind, reset};

use crate::{
    for_each_sink,
    harness::{Database, Session},
    shipping::{Running, Setup},
    silence::SilentProxy,
};

for_each_sink! {
    rows_whose_numbers_begin_again_are_all_published,
    a_source_that_halts_among_rows_with_one_seq_repeats_none_of_them,
    a_relay_is_ready_when_it_has_read_a_page_and_not_before,
}

/// The ids of the events in these records, each once.
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

const SET_BACK: &str = "select setval('outbox_seq', 1, false)";

/// As after data was restored without its sequences: while the relay is away, and while it runs.
async fn rows_whose_numbers_begin_again_are_all_published(sink: SinkKind) -> Result<()> {
    let mut setup = Setup::new("set_back", sink).await?;
    setup.max_page_rows = 5;
    let session = Session::new(&setup.database).await?;
    write_rows(&session, &setup.topic, 25).await?;
    session.client.batch_execute(SET_BACK).await?;
    write_rows(&session, &setup.topic, 25).await?;
    let relay = setup.start().await?;
    assert_eq!(event_ids(&setup.records(50).await?).len(), 50);
    session.client.batch_execute(SET_BACK).await?;
    write_rows(&session, &setup.topic, 10).await?;
    assert_eq!(event_ids(&setup.records(60).await?).len(), 60);
    relay.stop().await?;
    assert_eq!(setup.records(60).await?.len(), 60, "duplicates");
    let found = check(&setup.config()?).await;
    let failed = found.iter().find(|finding| finding.level == Level::Fail);
    let failed = failed.context("a finding")?.to_string();
    let (_, statement) = failed.split_once("; ").context(failed.clone())?;
    assert!(failed.contains("is behind the outbox, which has a row with seq 25"));
    session.client.batch_execute(statement).await?;
    let found = check(&setup.config()?).await;
    assert!(
        found.iter().all(|finding| finding.level != Level::Fail),
        "{found:?}"
    );
    Ok(())
}

/// The checkpoint is between rows that only their ids tell apart.
async fn a_source_that_halts_among_rows_with_one_seq_repeats_none_of_them(
    sink: SinkKind,
) -> Result<()> {
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
    // Several tries, and another relay's.
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

/// Rows with an id beyond those of this cluster, as a dump from a busier one brings them.
async fn write_from_the_future(session: &Session, topic: &str, rows: usize) -> Result<()> {
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

/// Before a relay has ever led, and where a publication covers every table.
#[tokio::test(flavor = "multi_thread")]
async fn rows_from_the_future_halt_the_source_before_anything_is_published() -> Result<()> {
    let setup = Setup::new("from_future", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let publication = "create publication everything for all tables";
    session.client.batch_execute(publication).await?;
    write_rows(&session, &setup.topic, 5).await?;
    write_from_the_future(&session, &setup.topic, 3).await?;
    let way_out = "outbox-relay reset --source test";
    let failures_before = failures(&setup).await?;
    assert!(failures_before.contains(way_out), "{failures_before}");
    let relay = setup.start().await?;
    let text = relay.wait_for_state(503, way_out).await?;
    assert!(text.contains("test: halted"), "{text}");
    relay.wait_for_restarts(3).await?;
    assert_eq!(setup.records(0).await?, []);
    // Beside the relay, which leads no more than a moment at a time.
    reset(&setup.config()?.sources[0], ResetTo::Beginning).await?;
    assert_eq!(event_ids(&setup.records(8).await?).len(), 8);
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    assert_eq!(failures(&setup).await?, "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_from_the_future_halt_a_source_that_publishes() -> Result<()> {
    let setup = Setup::new("future_comes", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let relay = setup.start().await?;
    relay.wait_for_readiness(200).await?;
    write_from_the_future(&session, &setup.topic, 3).await?;
    relay.wait_for_state(503, "test: halted").await?;
    write_rows(&session, &setup.topic, 5).await?;
    let adopt = "select outbox_adopt_foreign_rows()";
    session.client.batch_execute(adopt).await?;
    assert_eq!(event_ids(&setup.records(8).await?).len(), 8);
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// As an upgrade by logical replication does: the rows have the ids of transactions that are long done here.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_replicated_with_old_transaction_ids_are_published() -> Result<()> {
    let home = Arc::new(Home::new()?);
    let postgres = Postgres::start(&home, &["fsync=off", "wal_level=logical"]).await?;
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
    // Transactions pass, so that those ids are of the past when the rows come.
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
    // What can't be told is not called fine.
    let unknown = findings(&setup, Level::Unknown).await?;
    assert!(unknown.contains("a subscription fills it"), "{unknown}");
    assert!(
        unknown.contains("could not check whose transaction ids"),
        "{unknown}"
    );
    relay.stop().await?;
    here.client
        .batch_execute("drop subscription outbox")
        .await?;
    postgres.process.stop().await;
    Ok(())
}

/// What comes between the election and the first page never gets its answer.
async fn a_relay_is_ready_when_it_has_read_a_page_and_not_before(sink: SinkKind) -> Result<()> {
    let mut setup = Setup::new("first_page", sink).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let database_url = setup.database.url.clone();
    // What is parked, the settings of the reader's session, the first page.
    for word in ["from relay_parked", "enable_bitmapscan", "copy (select"] {
        let proxy = SilentProxy::start(&database_url, word).await?;
        setup.database.url = proxy.url().to_owned();
        let relay = setup.start().await?;
        let is_page = word.starts_with("copy");
        never_ready_while(&relay, async || {
            proxy.has_fallen_silent().await?;
            match is_page {
                // A page may take longer than a test.
                true => tokio::time::sleep(Duration::from_secs(2)).await,
                false => drop(relay.wait_for_state(503, "doesn't answer within").await?),
            }
            Ok(())
        })
        .await
        .context(word)?;
        if !is_page {
            proxy.speak();
            relay.wait_for_readiness(200).await?;
        }
        relay.stop().await?;
    }
    Ok(())
}

/// Asks again and again while something else is waited for.
async fn never_ready_while(
    relay: &Running,
    waiting: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let asking = async {
        loop {
            let (code, text) = outbox_relay::ask(relay.admin_addr, "/readyz").await?;
            anyhow::ensure!(code == 503, "{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        done = waiting() => done,
        failed = asking => failed,
    }
}

/// A crash empties a table that is not logged, and a committed row with it.
#[tokio::test(flavor = "multi_thread")]
async fn check_finds_tables_that_a_crash_would_empty() -> Result<()> {
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
