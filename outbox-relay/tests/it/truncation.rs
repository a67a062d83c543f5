//! Truncation of published partitions, and `reset`.

use anyhow::Result;
use devstack::eventually;
use outbox_relay::{
    ResetTo,
    config::{OnRejection, SinkKind},
    reset,
};

use crate::harness::{Session, Setup};

/// Returns SQL that inserts `count` rows into the bucket that is `ahead` of the current one, which is always 0 here.
pub(crate) fn insert(setup: &Setup, ahead: i64, count: i64) -> String {
    format!(
        "insert into outbox (topic, key, event_type, aggregate_version, payload, bucket)
         select '{}', 'key', 'made', n, '{{}}', {ahead} from generate_series(1, {count}) as n",
        setup.topic
    )
}

/// Returns SQL that counts the rows in the bucket that is `ahead` of the current one.
pub(crate) fn rows(ahead: i64) -> String {
    format!("select count(*) from outbox where bucket = {ahead}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_truncated_only_after_all_of_it_was_published() -> Result<()> {
    let setup = Setup::new("truncation", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let slow = Session::new(&setup.database).await?;
    let sql = &session.client;
    // Unpublished rows, however old: no relay has run yet.
    sql.batch_execute(&insert(&setup, 3, 100)).await?;
    // A transaction that is still open has written to another old partition.
    slow.client.batch_execute("begin").await?;
    slow.client.batch_execute(&insert(&setup, 5, 10)).await?;
    sql.batch_execute(&insert(&setup, 5, 10)).await?;
    sql.batch_execute(&insert(&setup, 0, 10)).await?;
    let relay = setup.start().await?;
    setup.records(120).await?;
    sql.wait_for(&rows(3), 0).await?;
    assert_eq!(
        (sql.count(&rows(5)).await?, sql.count(&rows(0)).await?),
        (10, 10)
    );
    slow.client.batch_execute("commit").await?;
    setup.records(130).await?;
    sql.wait_for(&rows(5), 0).await?;
    // The current partition is never truncated, and there are no dead tuples to vacuum.
    assert_eq!(sql.count(&rows(0)).await?, 10);
    let dead = "select sum(n_dead_tup) from pg_stat_user_tables where relname like 'outbox%'";
    assert_eq!(sql.count(dead).await?, 0);
    relay.stop().await?;
    assert_eq!(setup.records(130).await?.len(), 130);
    Ok(())
}

/// A `created_at` in the future or infinite is not an age.
#[tokio::test(flavor = "multi_thread")]
async fn a_created_at_that_is_not_an_age_does_not_prevent_truncation() -> Result<()> {
    let mut setup = Setup::new("no_age", SinkKind::Kafka).await?;
    setup.on_rejection = OnRejection::DeadLetter;
    let session = Session::new(&setup.database).await?;
    for (bucket, time) in [(2, "infinity"), (3, "2999-01-01"), (4, "-infinity")] {
        let sql = format!(
            "{}; insert into outbox (topic, key, event_type, aggregate_version, created_at, bucket)
             values ('{}', 'key', 'made', 2, '{time}', {bucket})",
            insert(&setup, bucket, 1),
            setup.topic
        );
        session.client.batch_execute(&sql).await?;
    }
    let relay = setup.start().await?;
    for bucket in [2, 3, 4] {
        session.client.wait_for(&rows(bucket), 0).await?;
    }
    let dead_letters = "select count(*) from relay_dead_letters";
    assert_eq!(session.client.count(dead_letters).await?, 2);
    relay.stop().await
}

/// Two sources may publish the same table.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_stays_until_every_source_has_published_it() -> Result<()> {
    let setup = Setup::new("two_sources", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let sql = &session.client;
    sql.batch_execute(&insert(&setup, 3, 10)).await?;
    sql.batch_execute(
        "insert into relay_checkpoints (source, epoch, snapshot, max_seq, heartbeat_at, resigned)
         values ('other', 1, pg_current_snapshot(), 10, now(), true)",
    )
    .await?;
    // The other source has not published these.
    sql.batch_execute(&insert(&setup, 4, 10)).await?;
    let relay = setup.start().await?;
    setup.records(20).await?;
    sql.wait_for(&rows(3), 0).await?;
    // Several more truncation intervals.
    tokio::time::sleep(5 * setup.config()?.sources[0].truncation_interval).await;
    assert_eq!(sql.count(&rows(4)).await?, 10);
    sql.batch_execute("delete from relay_checkpoints where source = 'other'")
        .await?;
    sql.wait_for(&rows(4), 0).await?;
    relay.stop().await
}

/// Its checkpoint does not refer to the rows of this table.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_source_of_another_table_does_not_prevent_truncation() -> Result<()> {
    let setup = Setup::new("other_table", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let sql = &session.client;
    let of_another_table = "insert into relay_checkpoints
            (source, epoch, snapshot, max_seq, heartbeat_at, resigned, outbox)
        values ('other', 1, pg_current_snapshot(), 10, now(), true, 'aggregates'::regclass)";
    sql.batch_execute(of_another_table).await?;
    sql.batch_execute(&insert(&setup, 3, 10)).await?;
    let relay = setup.start().await?;
    sql.wait_for(&rows(3), 0).await?;
    // A source of this table does, and is reported after ten minutes without a leader.
    let of_this_table = "update relay_checkpoints set outbox = 'outbox'::regclass,
        heartbeat_at = now() - interval '1 hour' where source = 'other'";
    sql.batch_execute(of_this_table).await?;
    sql.batch_execute(&insert(&setup, 4, 10)).await?;
    let text = relay.wait_for_state(200, "degraded: outbox_4").await?;
    assert!(
        text.contains("source other has not published all of it"),
        "{text}"
    );
    assert!(
        text.contains("delete its row from relay_checkpoints"),
        "{text}"
    );
    assert_eq!(sql.count(&rows(4)).await?, 10);
    sql.batch_execute("delete from relay_checkpoints where source = 'other'")
        .await?;
    sql.wait_for(&rows(4), 0).await?;
    eventually("no warning", async || {
        let text = relay.wait_for_readiness(200).await?;
        Ok((!text.contains("degraded")).then_some(()))
    })
    .await?;
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_an_empty_outbox_skips_no_later_row() -> Result<()> {
    let setup = Setup::new("reset_empty", SinkKind::Kafka).await?;
    let source = setup.config()?.sources.remove(0);
    let relay = setup.start().await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    assert_eq!(reset(&source, ResetTo::Beginning).await?, 0);
    // A row with an old transaction id counts as new only because of its seq.
    let session = Session::new(&setup.database).await?;
    let sql = format!(
        "insert into outbox (xid, topic, key, event_type, aggregate_version)
         values ('5', '{topic}', 'a', 'made', 1), (default, '{topic}', 'b', 'made', 1)",
        topic = setup.topic
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    assert_eq!(setup.records(2).await?.len(), 2);
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn reset_publishes_rows_again_from_a_seq_or_a_time() -> Result<()> {
    let setup = Setup::new("replay", SinkKind::Kafka).await?;
    let source = setup.config()?.sources.remove(0);
    let session = Session::new(&setup.database).await?;
    for _ in 0..10 {
        setup.write(&session, "a").await?;
    }
    let relay = setup.start().await?;
    setup.records(10).await?;
    assert!(
        reset(&source, ResetTo::Seq(8)).await.is_err(),
        "a relay leads"
    );
    relay.stop().await?;
    // A reset never skips a pending row or a row of an open transaction.
    let slow = Session::new(&setup.database).await?;
    slow.client.batch_execute("begin").await?;
    let version = slow.change("slow").await?;
    slow.enqueue(&setup.topic, "slow", version).await?;
    setup.write(&session, "a").await?;
    let newest = session.client.count("select max(seq) from outbox").await?;
    assert_eq!(
        reset(&source, ResetTo::Seq(newest + 100)).await?,
        newest - 1
    );
    assert_eq!(reset(&source, ResetTo::Seq(8)).await?, 7);
    let relay = setup.start().await?;
    let records = setup.records(14).await?;
    assert_eq!(records.len(), 14, "3 again, and the new one");
    slow.client.batch_execute("commit").await?;
    let records = setup.records(15).await?;
    assert!(records.iter().any(|record| record.key == "slow"));
    relay.stop().await?;
    // From a time on: all rows are younger than a minute.
    let now = session
        .client
        .count("select date_part('epoch', now())")
        .await?;
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let time = ResetTo::UnixSeconds(now as f64 - 60.0);
    assert_eq!(reset(&source, time).await?, 0);
    assert_eq!(reset(&source, ResetTo::Beginning).await?, 0);
    let relay = setup.start().await?;
    setup.records(15 + 12).await?;
    relay.stop().await
}
