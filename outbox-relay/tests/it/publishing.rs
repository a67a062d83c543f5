//! From a committed row to a record in Kafka, and the failures in between, with each sink.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, bail};
use devstack::{Addresses, Record, WAIT_TIMEOUT};
use outbox_relay::{ResetTo, config::SinkKind, reset};

use crate::{
    for_each_sink,
    harness::{Session, Setup},
};

for_each_sink! {
    only_committed_rows_are_published_once_and_in_order,
    a_record_has_the_values_of_its_row,
    an_open_transaction_delays_no_other_row_and_is_published_when_it_commits,
    a_standby_takes_over_after_a_shutdown_without_duplicates,
    a_leader_whose_sessions_are_terminated_continues_from_its_checkpoint,
    a_checkpoint_from_the_future_halts_the_source_until_it_is_reset,
    a_dump_that_was_restored_elsewhere_is_published_after_a_reset,
    a_silent_database_is_reported_after_a_timeout,
    a_missing_topic_halts_its_source_without_duplicates,
    a_record_that_is_too_large_halts_its_source_without_duplicates,
}

/// Returns the versions of each key in the order of the topic.
fn versions(records: &[Record]) -> HashMap<&str, Vec<i64>> {
    let mut versions: HashMap<&str, Vec<i64>> = HashMap::new();
    for record in records {
        versions
            .entry(&record.key)
            .or_default()
            .push(record.version());
    }
    versions
}

async fn only_committed_rows_are_published_once_and_in_order(sink: SinkKind) -> Result<()> {
    let setup = Setup::new("committed", sink).await?;
    let session = Session::new(&setup.database).await?;
    for _ in 0..100 {
        for key in ["a", "b", "c"] {
            setup.write(&session, key).await?;
        }
        session.client.batch_execute("begin").await?;
        let version = session.change("a").await?;
        session.enqueue(&setup.topic, "a", version).await?;
        session.client.batch_execute("rollback").await?;
    }
    let relay = setup.start().await?;
    let records = setup.records(300).await?;
    relay.stop().await?;
    let in_order: Vec<i64> = (1..=100).collect();
    for key in ["a", "b", "c"] {
        assert_eq!(versions(&records)[key], in_order, "{key}");
    }

    // After a clean shutdown nothing is sent again.
    let relay = setup.start().await?;
    setup.write(&session, "a").await?;
    let records = setup.records(301).await?;
    relay.stop().await?;
    assert_eq!(records.len(), 301);
    assert_eq!(versions(&records)["a"].last(), Some(&101));
    Ok(())
}

async fn a_record_has_the_values_of_its_row(sink: SinkKind) -> Result<()> {
    let setup = Setup::new("headers", sink).await?;
    let client = setup.database.connect().await?;
    let sql = format!(
        "insert into outbox (event_id, topic, key, event_type, aggregate_version, payload, headers,
             traceparent, created_at)
         values ('0199d0a0-0000-7000-8000-000000000001', '{0}', 'ключ', 'made', 7, '\\x00ff', null,
             '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', '2026-01-02 03:04:05+00'),
         ('0199d0a0-0000-7000-8000-000000000002', '{0}', 'ключ', 'deleted', 8, null,
             '{{\"reason\":\"asked\"}}', null, '2026-01-02 03:04:05.25+00')",
        setup.topic
    );
    client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    let records = setup.records(2).await?;
    relay.stop().await?;
    let [made, deleted] = &records[..] else {
        bail!("{records:?}")
    };
    assert_eq!(
        (made.key.as_str(), made.payload.as_deref()),
        ("ключ", Some(&[0, 255][..]))
    );
    let expected = [
        ("ce_specversion", "1.0"),
        ("ce_source", "/test"),
        ("content-type", "application/json"),
        ("ce_id", "0199d0a0-0000-7000-8000-000000000001"),
        ("ce_type", "made"),
        ("ce_time", "2026-01-02T03:04:05.000000Z"),
        ("ce_aggregateversion", "7"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    assert_eq!(
        made.headers,
        expected.map(|(n, v)| (n.to_owned(), v.to_owned()))
    );
    assert_eq!(deleted.payload, None, "a tombstone");
    assert_eq!(deleted.header("content-type"), None, "a tombstone");
    assert_eq!(deleted.header("reason"), Some("asked"));
    Ok(())
}

async fn an_open_transaction_delays_no_other_row_and_is_published_when_it_commits(
    sink: SinkKind,
) -> Result<()> {
    let setup = Setup::new("open", sink).await?;
    let relay = setup.start().await?;
    let (slow, fast) = (
        Session::new(&setup.database).await?,
        Session::new(&setup.database).await?,
    );
    slow.client.batch_execute("begin").await?;
    let version = slow.change("slow").await?;
    slow.enqueue(&setup.topic, "slow", version).await?;
    for _ in 0..200 {
        setup.write(&fast, "fast").await?;
    }
    let records = setup.records(200).await?;
    assert!(records.iter().all(|record| record.key == "fast"));
    // Another relay takes over meanwhile: the open transaction is in the checkpoint, not in memory.
    relay.stop().await?;
    let relay = setup.start().await?;
    setup.write(&fast, "fast").await?;
    setup.records(201).await?;
    slow.client.batch_execute("commit").await?;
    let records = setup.records(202).await?;
    relay.stop().await?;
    assert_eq!(versions(&records)["slow"], [1]);
    assert_eq!(versions(&records)["fast"], (1..=201).collect::<Vec<_>>());
    Ok(())
}

async fn a_standby_takes_over_after_a_shutdown_without_duplicates(sink: SinkKind) -> Result<()> {
    let setup = Setup::new("standby", sink).await?;
    let session = Session::new(&setup.database).await?;
    let first = setup.start().await?;
    setup.write(&session, "a").await?;
    setup.records(1).await?;
    let second = setup.start().await?;
    second.wait_for_state(200, "test: standby").await?;
    first.stop().await?;
    setup.write(&session, "a").await?;
    let records = setup.records(2).await?;
    assert_eq!(versions(&records)["a"], [1, 2]);
    second.wait_for_state(200, "test: idle").await?;
    second.stop().await
}

async fn a_leader_whose_sessions_are_terminated_continues_from_its_checkpoint(
    sink: SinkKind,
) -> Result<()> {
    let setup = Setup::new("cut", sink).await?;
    let session = Session::new(&setup.database).await?;
    let relay = setup.start().await?;
    for round in 1..=3 {
        for _ in 0..50 {
            setup.write(&session, "a").await?;
        }
        setup.records(round * 50).await?;
        let cut = "select pg_terminate_backend(pid) from pg_stat_activity
                   where datname = current_database() and application_name like 'outbox-relay%'";
        session.client.query(cut, &[]).await?;
    }
    setup.write(&session, "a").await?;
    // Records since the last checkpoint may be duplicated, but are in order for a consumer that ignores known versions.
    let mut newest = 0;
    let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
    while newest < 151 {
        let records = setup.records(151).await?;
        newest = 0;
        for version in &versions(&records)["a"] {
            assert!(*version <= newest + 1, "{version} after {newest}");
            newest = newest.max(*version);
        }
        assert!(tokio::time::Instant::now() < deadline, "{newest} of 151");
    }
    relay.stop().await
}

async fn a_checkpoint_from_the_future_halts_the_source_until_it_is_reset(
    sink: SinkKind,
) -> Result<()> {
    let setup = Setup::new("future", sink).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let sql = "insert into relay_checkpoints
                   (source, epoch, snapshot, max_seq, heartbeat_at, resigned)
               values ('test', 9, '999999999:999999999:', 0, now(), true)";
    session.client.batch_execute(sql).await?;
    let relay = setup.start().await?;
    let recovery_command = "outbox-relay reset --source test";
    relay.wait_for_state(503, recovery_command).await?;
    assert_eq!(setup.records(0).await?, []);
    relay.stop().await?;
    reset(&setup.config()?.sources[0], ResetTo::Beginning).await?;
    let relay = setup.start().await?;
    assert_eq!(setup.records(1).await?.len(), 1);
    relay.stop().await
}

/// As after a restore of a dump: rows and checkpoint have transaction ids that are ahead of this cluster.
async fn a_dump_that_was_restored_elsewhere_is_published_after_a_reset(
    sink: SinkKind,
) -> Result<()> {
    let setup = Setup::new("restored", sink).await?;
    let session = Session::new(&setup.database).await?;
    for _ in 0..3 {
        setup.write(&session, "a").await?;
    }
    let relay = setup.start().await?;
    setup.records(3).await?;
    relay.stop().await?;
    let restored = "
        update outbox set xid = (xid::text::bigint + 1000000)::text::xid8;
        update relay_checkpoints set system_identifier = system_identifier + 1";
    session.client.batch_execute(restored).await?;
    let relay = setup.start().await?;
    let text = relay
        .wait_for_state(503, "belongs to another Postgres cluster")
        .await?;
    assert!(text.contains("outbox-relay reset --source test"), "{text}");
    relay.stop().await?;
    reset(&setup.config()?.sources[0], ResetTo::Beginning).await?;
    let relay = setup.start().await?;
    setup.records(6).await?;
    setup.write(&session, "a").await?;
    let records = setup.records(7).await?;
    let versions: Vec<i64> = records.iter().map(Record::version).collect();
    assert_eq!(versions, [1, 2, 3, 1, 2, 3, 4]);
    relay.stop().await
}

async fn a_silent_database_is_reported_after_a_timeout(sink: SinkKind) -> Result<()> {
    let mut setup = Setup::new("silent", sink).await?;
    // The kernel accepts connections, but no process responds.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    setup.database.url = format!("postgres://nobody@{}/nowhere", silent.local_addr()?);
    let relay = setup.start().await?;
    relay
        .wait_for_state(503, "the database did not respond within")
        .await?;
    relay.stop().await
}

/// A rejected row blocks those behind it and is reported all the time. Retries do not repeat the rows before it.
async fn a_missing_topic_halts_its_source_without_duplicates(sink: SinkKind) -> Result<()> {
    let setup = Setup::new("lost_topic", sink).await?;
    let session = Session::new(&setup.database).await?;
    for _ in 0..20 {
        setup.write(&session, "a").await?;
    }
    let missing = Addresses::unique_name("missing");
    session.enqueue(&missing, "a", 21).await?;
    for _ in 0..20 {
        setup.write(&session, "b").await?;
    }
    let relay = setup.start().await?;
    setup.records(20).await?;
    relay.wait_for_state(503, &missing).await?;
    for _ in 0..40 {
        let (code, text) = outbox_relay::ask(relay.admin_addr, "/readyz").await?;
        assert_eq!(code, 503, "{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(setup.records(20).await?.len(), 20);
    // It continues automatically once the topic exists.
    Addresses::shared().create_topic(&missing, 1).await?;
    assert_eq!(setup.records(40).await?.len(), 40);
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

async fn a_record_that_is_too_large_halts_its_source_without_duplicates(
    sink: SinkKind,
) -> Result<()> {
    let setup = Setup::new("large", sink).await?;
    let session = Session::new(&setup.database).await?;
    for _ in 0..20 {
        setup.write(&session, "a").await?;
    }
    let large = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, payload)
         values ('{}', 'a', 'large', 21, convert_to(repeat('x', 200000), 'UTF8'))",
        setup.topic
    );
    session.client.batch_execute(&large).await?;
    setup.write(&session, "b").await?;
    let relay = setup.start().await?;
    setup.records(20).await?;
    let mut rejections = 0;
    while rejections < 5 {
        let text = relay.wait_for_readiness(503).await?;
        rejections += usize::from(text.contains("was rejected and blocks this source"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    relay.stop().await?;
    // Retries neither skip the row nor repeat the rows before it.
    assert_eq!(setup.records(20).await?.len(), 20);
    Ok(())
}

/// Only reading waits for the lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_the_outbox_is_reported_and_survived() -> Result<()> {
    let setup = Setup::new("locked_outbox", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let relay = setup.start().await?;
    setup.write(&session, "a").await?;
    setup.records(1).await?;
    let lock = "begin; lock table outbox in access exclusive mode";
    session.client.batch_execute(lock).await?;
    let version = session.change("a").await?;
    session.enqueue(&setup.topic, "a", version).await?;
    // Another transaction, so that the relay polls the outbox.
    let other = setup.database.connect().await?;
    other
        .batch_execute("insert into aggregates values ('b', 1)")
        .await?;
    relay.wait_for_state(503, "pg_blocking_pids()").await?;
    session.client.batch_execute("commit").await?;
    setup.records(2).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// A session that keeps waiting would hold the lock of the source without a relay.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_the_checkpoint_is_reported_and_survived() -> Result<()> {
    let setup = Setup::new("locked", SinkKind::Kafka).await?;
    let (locker, client) = (
        setup.database.connect().await?,
        setup.database.connect().await?,
    );
    let lock = "begin; lock table relay_checkpoints in access exclusive mode";
    locker.batch_execute(lock).await?;
    let relay = setup.start().await?;
    relay.wait_for_state(503, "pg_blocking_pids()").await?;
    // At most one session waits: that of the current attempt.
    let waiting = "select count(*) from pg_stat_activity where datname = current_database()
        and application_name = 'outbox-relay leader' and wait_event_type = 'Lock'";
    assert!(client.count(waiting).await? <= 1);
    locker.batch_execute("rollback").await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}
