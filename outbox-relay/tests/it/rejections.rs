//! Records that Kafka rejects permanently, under each policy: a record of 2 MB for a topic that accepts 1 MB.

use ::rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
};
use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Kafka, Record, WorkDir, eventually};
use outbox_relay::{
    DropOutcome, ParkedKeys,
    config::{OnRejection, SinkKind},
};

use crate::{
    acl::{AUTHORIZER, deny_writing},
    for_each_sink,
    harness::{Session, Setup},
};

for_each_sink! {
    halt_publishes_nothing_behind_a_rejected_event,
    a_parked_key_is_held_back_and_others_are_published,
    a_dropped_event_is_dead_lettered_and_its_key_continues,
    a_dead_letter_is_in_the_table_and_in_the_topic,
    a_rejection_of_a_batch_is_traced_to_its_record,
    a_rejected_batch_parks_or_dead_letters_no_acceptable_row,
    a_topic_without_write_permission_blocks_no_other_topic,
    rows_before_a_rejected_row_are_not_repeated,
    events_behind_a_parked_key_are_kept_when_the_source_halts,
    a_halted_source_reads_one_row_per_attempt_and_not_a_page,
    a_missing_dead_letter_topic_is_reported_before_anything_is_published,
    a_dead_letter_stays_pending_while_its_topic_is_missing,
    rejected_events_that_share_a_seq_are_all_kept,
    rows_that_cannot_become_records_are_rejected_with_the_reason,
    every_dead_letter_of_a_page_is_stored_with_its_reason,
}

const LARGE: usize = 2_000_000;

async fn setup(test: &str, sink: SinkKind, on_rejection: OnRejection) -> Result<(Setup, Session)> {
    let mut setup = Setup::new(test, sink).await?;
    setup.on_rejection = on_rejection;
    setup.max_record_bytes = 4_000_000;
    let session = Session::new(&setup.database).await?;
    Ok((setup, session))
}

/// Changes `key` and enqueues an event with a payload of `length` bytes. Returns its seq.
async fn write_large(session: &Session, topic: &str, key: &str, length: usize) -> Result<i64> {
    let version = session.change(key).await?;
    let sql = "insert into outbox (topic, key, event_type, aggregate_version, payload)
               values ($1, $2, 'large', $3, convert_to(repeat('x', $4), 'UTF8')) returning seq";
    let length = i32::try_from(length)?;
    let row = session
        .client
        .query_one(sql, &[&topic, &key, &version, &length])
        .await?;
    Ok(row.get(0))
}

pub(crate) async fn set_limit(topic: &str, bytes: usize) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", Addresses::shared().brokers())
        .create()?;
    let bytes = bytes.to_string();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic))
        .set("max.message.bytes", &bytes)
        .set("cleanup.policy", "compact");
    for result in admin.alter_configs([&change], &AdminOptions::new()).await? {
        result.map_err(|(_, code)| anyhow::anyhow!("{code}"))?;
    }
    Ok(())
}

fn versions_of(records: &[Record], key: &str) -> Vec<i64> {
    let of_key = records.iter().filter(|record| record.key == key);
    of_key.map(Record::version).collect()
}

async fn halt_publishes_nothing_behind_a_rejected_event(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("halt", sink, OnRejection::Halt).await?;
    setup.write(&session, "a").await?;
    write_large(&session, &setup.topic, "a", LARGE).await?;
    setup.write(&session, "b").await?;
    let relay = setup.start().await?;
    relay
        .wait_for_state(503, "was rejected and blocks this source")
        .await?;
    assert_eq!(setup.records(1).await?.len(), 1);
    // The fix: from now on the topic accepts the record.
    set_limit(&setup.topic, 4_000_000).await?;
    let records = setup.records(3).await?;
    assert_eq!(versions_of(&records, "a"), [1, 2]);
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

async fn a_parked_key_is_held_back_and_others_are_published(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("park", sink, OnRejection::ParkKey).await?;
    setup.write(&session, "a").await?;
    let rejected = write_large(&session, &setup.topic, "a", LARGE).await?;
    for key in ["a", "b", "a", "b"] {
        setup.write(&session, key).await?;
    }
    let relay = setup.start().await?;
    let records = setup.records(3).await?;
    assert_eq!(
        (versions_of(&records, "a"), versions_of(&records, "b")),
        (vec![1], vec![1, 2])
    );
    relay.wait_for_readiness(200).await?;
    let parked = ParkedKeys::connect(&setup.config()?.sources[0]).await?;
    let key = eventually("a parked key with all its events", async || {
        let keys = parked.list().await?;
        Ok(keys.into_iter().find(|key| key.events == 3))
    })
    .await?;
    assert_eq!((key.key.as_str(), key.rejected_seq), ("a", rejected));
    assert!(key.error.contains(&setup.topic), "{}", key.error);
    // A retry changes nothing while the cause persists ...
    assert_eq!(parked.retry(Some("a")).await?, 1);
    eventually("the end of a retry", async || {
        Ok(parked
            .list()
            .await?
            .iter()
            .all(|key| !key.retry)
            .then_some(()))
    })
    .await?;
    relay.stop().await?;
    // ... and the parked key survives a restart. Without the cause all its events are published in order, and later events
    // are published as usual.
    let relay = setup.start().await?;
    set_limit(&setup.topic, 4_000_000).await?;
    setup.write(&session, "a").await?;
    assert_eq!(parked.retry(None).await?, 1);
    let records = setup.records(7).await?;
    assert_eq!(versions_of(&records, "a"), [1, 2, 3, 4, 5]);
    setup.write(&session, "a").await?;
    setup.records(8).await?;
    assert!(parked.list().await?.is_empty());
    relay.stop().await
}

async fn a_dropped_event_is_dead_lettered_and_its_key_continues(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("drop", sink, OnRejection::ParkKey).await?;
    let rejected = write_large(&session, &setup.topic, "a", LARGE).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    let parked = ParkedKeys::connect(&setup.config()?.sources[0]).await?;
    eventually("a parked key", async || {
        Ok(parked
            .list()
            .await?
            .iter()
            .any(|key| key.events == 2)
            .then_some(()))
    })
    .await?;
    assert_eq!(
        parked.drop_event(rejected, None).await?,
        DropOutcome::Dropped
    );
    assert_eq!(
        parked.drop_event(rejected, None).await?,
        DropOutcome::NotFound
    );
    assert_eq!(versions_of(&setup.records(1).await?, "a"), [2]);
    let sql = "select error, length(payload) from relay_dead_letters";
    let row = session.client.query_one(sql, &[]).await?;
    let (error, length): (String, i32) = (row.get(0), row.get(1));
    assert!(error.starts_with("dropped by an operator"), "{error}");
    assert_eq!(usize::try_from(length)?, LARGE);
    relay.stop().await
}

async fn a_dead_letter_is_in_the_table_and_in_the_topic(sink: SinkKind) -> Result<()> {
    let (mut setup, session) = setup("dead", sink, OnRejection::DeadLetter).await?;
    let dead_letters = Addresses::unique_name("dead_letters");
    Addresses::shared().create_topic(&dead_letters, 1).await?;
    setup.dead_letter_topic = Some(dead_letters.clone());
    let large = write_large(&session, &setup.topic, "a", LARGE).await?;
    let version = session.change("a").await?;
    let lost = session.enqueue("no.such.topic", "a", version).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    assert_eq!(versions_of(&setup.records(1).await?, "a"), [3]);
    let dead = eventually("a dead letter in its topic", async || {
        Ok(Addresses::shared().read_topic(&dead_letters).await?.pop())
    })
    .await?;
    assert_eq!((dead.key.as_str(), dead.version()), ("a", 2));
    assert_eq!(dead.header("dead_letter_topic"), Some("no.such.topic"));
    assert_eq!(dead.header("dead_letter_seq"), Some(&*lost.to_string()));
    let error = dead.header("dead_letter_error").unwrap_or_default();
    assert!(error.contains("no.such.topic"), "{error}");
    // The dead-letter topic rejects the large one, too. The table has both.
    let settled = "select count(*) from relay_dead_letters where in_topic <> 'pending'";
    session.client.wait_for(settled, 2).await?;
    let sql = "select seq, in_topic, error from relay_dead_letters order by seq";
    let rows = session.client.query(sql, &[]).await?;
    let states: Vec<(i64, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(states, [(large, "rejected"), (lost, "sent")]);
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// The broker rejects whole batches and does not name the record.
async fn a_rejection_of_a_batch_is_traced_to_its_record(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("narrow", sink, OnRejection::ParkKey).await?;
    setup.write(&session, "warm").await?;
    let relay = setup.start().await?;
    setup.records(1).await?;
    // The sink has cached the former limit.
    set_limit(&setup.topic, 10_000).await?;
    session.client.batch_execute("begin").await?;
    for key in ["a", "b", "c"] {
        let version = session.change(key).await?;
        session.enqueue(&setup.topic, key, version).await?;
    }
    write_large(&session, &setup.topic, "a", 50_000).await?;
    for key in ["a", "b", "c"] {
        let version = session.change(key).await?;
        session.enqueue(&setup.topic, key, version).await?;
    }
    session.client.batch_execute("commit").await?;
    let parked = ParkedKeys::connect(&setup.config()?.sources[0]).await?;
    let keys = eventually("a parked key", async || {
        let keys = parked.list().await?;
        Ok(keys.iter().any(|key| key.events == 2).then_some(keys))
    })
    .await?;
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert_eq!(keys[0].key, "a");
    let records = eventually("everything else", async || {
        let records = setup.records(1).await?;
        let newest = |key| versions_of(&records, key).last().copied();
        Ok((newest("b") == Some(2) && newest("c") == Some(2)).then_some(records))
    })
    .await?;
    assert_eq!(versions_of(&records, "a").iter().max(), Some(&1));
    relay.wait_for_readiness(200).await.context("ready")?;
    relay.stop().await
}

/// No row is too large, but the batch is. The sink reports the rejection while it is given further rows, which were not
/// rejected.
async fn a_rejected_batch_parks_or_dead_letters_no_acceptable_row(sink: SinkKind) -> Result<()> {
    const ROWS: usize = 450;
    for on_rejection in [OnRejection::ParkKey, OnRejection::DeadLetter] {
        let (mut setup, session) = setup("innocent", sink, on_rejection).await?;
        setup.max_page_rows = 20_000;
        setup.write(&session, "warm").await?;
        let relay = setup.start().await?;
        setup.records(1).await?;
        set_limit(&setup.topic, 100_000).await?;
        let sql = format!(
            "insert into outbox (topic, key, event_type, aggregate_version, payload)
             select '{}', 'key-' || n % 10, 'made', n, convert_to(repeat('x', 10000), 'UTF8')
             from generate_series(1, {ROWS}) as n",
            setup.topic
        );
        session.client.batch_execute(&sql).await?;
        eventually("all rows", async || {
            let records = setup.records(1).await?;
            let seen: HashSet<_> = records.iter().map(|r| (&r.key, r.version())).collect();
            Ok((seen.len() == ROWS + 1).then_some(()))
        })
        .await?;
        let rejected = "select (select count(*) from relay_parked)
                              + (select count(*) from relay_dead_letters)";
        assert_eq!(session.client.count(rejected).await?, 0);
        relay.stop().await?;
    }
    Ok(())
}

/// Starts a broker that denies writing to one topic.
async fn denying_setup(sink: SinkKind, on_rejection: OnRejection) -> Result<DenyingSetup> {
    let work_dir = Arc::new(WorkDir::new()?);
    let kafka = Kafka::start_with_settings(&work_dir, &AUTHORIZER).await?;
    let (mut setup, session) = setup("denied", sink, on_rejection).await?;
    setup.brokers = kafka.brokers().to_owned();
    let denied = format!("{}_denied", setup.topic);
    for topic in [&setup.topic, &denied] {
        kafka.create_topic(topic, 3, &[]).await?;
    }
    deny_writing(kafka.brokers(), &denied).await?;
    Ok(DenyingSetup {
        kafka,
        setup,
        session,
        denied,
    })
}

struct DenyingSetup {
    kafka: Kafka,
    setup: Setup,
    session: Session,
    denied: String,
}

/// Retries start at the rejected row.
async fn rows_before_a_rejected_row_are_not_repeated(sink: SinkKind) -> Result<()> {
    const ROWS: usize = 300;
    let DenyingSetup {
        kafka,
        mut setup,
        session,
        denied,
    } = denying_setup(sink, OnRejection::Halt).await?;
    setup.max_page_rows = 20_000;
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, payload)
         select '{}', 'key-' || n % 10, 'made', n, '{{}}' from generate_series(1, {ROWS}) as n;
         insert into outbox (topic, key, event_type, aggregate_version, payload)
         values ('{denied}', 'key-1', 'made', 1000, '{{}}')",
        setup.topic
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    relay
        .wait_for_state(503, "was rejected and blocks this source")
        .await?;
    let count = setup.records(ROWS).await?.len();
    // Several more attempts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(setup.records(ROWS).await?.len(), count);
    // Once in batches, and once one by one.
    assert!(count <= 2 * ROWS, "{count} records of {ROWS} rows");
    relay.stop().await?;
    kafka.process.stop().await;
    Ok(())
}

/// The broker reports this only for a whole batch, which is sent again one by one.
async fn a_topic_without_write_permission_blocks_no_other_topic(sink: SinkKind) -> Result<()> {
    let DenyingSetup {
        kafka,
        setup,
        session,
        denied,
    } = denying_setup(sink, OnRejection::ParkKey).await?;
    session.client.batch_execute("begin").await?;
    for key in ["a", "b", "a", "b"] {
        for topic in [&setup.topic, &denied] {
            let version = session.change(key).await?;
            session.enqueue(topic, key, version).await?;
        }
    }
    session.client.batch_execute("commit").await?;
    let relay = setup.start().await?;
    eventually("the other topic's records", async || {
        // The broker accepted a part of the batches, so some records are duplicated.
        let records = setup.records(1).await?;
        let newest = |key| versions_of(&records, key).last().copied();
        Ok((newest("a") == Some(3) && newest("b") == Some(3)).then_some(()))
    })
    .await?;
    relay.wait_for_readiness(200).await?;
    let parked = ParkedKeys::connect(&setup.config()?.sources[0]).await?;
    let keys = eventually("two parked keys", async || {
        let keys = parked.list().await?;
        Ok((keys.iter().map(|key| key.events).sum::<i64>() == 4).then_some(keys))
    })
    .await?;
    assert!(keys.iter().all(|key| key.topic == denied), "{keys:?}");
    relay.stop().await?;
    kafka.process.stop().await;
    Ok(())
}

/// The page ends with an error while events of a parked key are not stored yet.
async fn events_behind_a_parked_key_are_kept_when_the_source_halts(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("behind", sink, OnRejection::ParkKey).await?;
    let missing = Addresses::unique_name("missing");
    session.enqueue(&missing, "hot", 1).await?;
    let relay = setup.start().await?;
    let parked = "select count(*) from relay_parked";
    session.client.wait_for(parked, 1).await?;
    // No further rejected event can be parked.
    let reject = "alter table relay_parked add constraint full_up check (error is null or seq = 1)";
    session.client.batch_execute(reject).await?;
    session.client.batch_execute("begin").await?;
    for version in 2..=4 {
        session.enqueue(&missing, "hot", version).await?;
    }
    session.enqueue(&missing, "another", 1).await?;
    session.client.batch_execute("commit").await?;
    relay.wait_for_state(503, "full_up").await?;
    session.client.wait_for(parked, 4).await?;
    let repair = "alter table relay_parked drop constraint full_up";
    session.client.batch_execute(repair).await?;
    session.client.wait_for(parked, 5).await?;
    Addresses::shared().create_topic(&missing, 1).await?;
    let source = &setup.config()?.sources[0];
    ParkedKeys::connect(source).await?.retry(None).await?;
    session.client.wait_for(parked, 0).await?;
    let records = Addresses::shared().read_topic(&missing).await?;
    assert_eq!(versions_of(&records, "hot"), [1, 2, 3, 4]);
    assert_eq!(versions_of(&records, "another"), [1]);
    relay.stop().await
}

async fn a_halted_source_reads_one_row_per_attempt_and_not_a_page(sink: SinkKind) -> Result<()> {
    // Less than two pages for each attempt, and more rows than the measurement of the backlog reads.
    const ROWS: usize = 20_000;
    const ATTEMPTS: u64 = 8;
    let (mut setup, session) = setup("attempts", sink, OnRejection::Halt).await?;
    setup.max_page_rows = 20_000;
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version)
         select '{}', 'a', 'made', n from generate_series(1, {ROWS}) as n",
        Addresses::unique_name("missing")
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    eventually("some attempts", async || {
        let status = relay.status().await?;
        let attempts = status["restarts"]["rejected"].as_u64();
        Ok((attempts > Some(ATTEMPTS)).then_some(()))
    })
    .await?;
    relay.stop().await?;
    // With one sink: each takes one of the 32,766 epochs of a producer id.
    let epoch = "select epoch from relay_checkpoints";
    assert_eq!(session.client.count(epoch).await?, 1);
    // Only the first attempt reads two pages, the second of which is read ahead.
    let fetched = usize::try_from(setup.database.rows_fetched().await?)?;
    assert!(fetched < ROWS, "{fetched}");
    Ok(())
}

/// They are read in pages, which are also limited in bytes.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_larger_than_a_page_are_all_sent_to_their_topic() -> Result<()> {
    let (mut setup, session) = setup(
        "large_dead_letters",
        SinkKind::Kafka,
        OnRejection::DeadLetter,
    )
    .await?;
    let dead_letters = Addresses::unique_name("large_dead_letters");
    Addresses::shared().create_topic(&dead_letters, 1).await?;
    setup.dead_letter_topic = Some(dead_letters);
    let pending = "insert into relay_dead_letters
            (source, seq, event_id, topic, key, event_type, payload, error)
        select 'test', n, gen_random_uuid(), 'no.such.topic', 'a', 'made',
            convert_to(repeat('x', 900000), 'UTF8'), 'it was rejected'
        from generate_series(1, 25) as n";
    session.client.batch_execute(pending).await?;
    let relay = setup.start().await?;
    let sent = "select count(*) from relay_dead_letters where in_topic = 'sent'";
    session.client.wait_for(sent, 25).await?;
    relay.stop().await
}

/// A dead letter is sent to its topic once, so that a missing topic would reject all of them permanently.
async fn a_missing_dead_letter_topic_is_reported_before_anything_is_published(
    sink: SinkKind,
) -> Result<()> {
    let (mut setup, session) = setup("no_dead_letter_topic", sink, OnRejection::DeadLetter).await?;
    let missing = Addresses::unique_name("missing");
    setup.dead_letter_topic = Some(missing.clone());
    session.enqueue("no.such.topic", "a", 1).await?;
    let relay = setup.start().await?;
    let text = relay.wait_for_state(503, &missing).await?;
    assert!(text.contains("Create the topic"), "{text}");
    Addresses::shared().create_topic(&missing, 1).await?;
    relay.wait_for_readiness(200).await?;
    let sent = "select count(*) from relay_dead_letters where in_topic = 'sent'";
    session.client.wait_for(sent, 1).await?;
    relay.stop().await
}

async fn a_dead_letter_stays_pending_while_its_topic_is_missing(sink: SinkKind) -> Result<()> {
    let (mut setup, session) =
        setup("dead_letter_topic_deleted", sink, OnRejection::DeadLetter).await?;
    let dead_letters = Addresses::unique_name("dead_letters");
    Addresses::shared().create_topic(&dead_letters, 1).await?;
    setup.dead_letter_topic = Some(dead_letters.clone());
    setup.write(&session, "warm").await?;
    let relay = setup.start().await?;
    setup.records(1).await?;
    Addresses::shared().delete_topic(&dead_letters).await?;
    eventually("the topic to be gone", async || {
        let names = Addresses::shared().topic_names().await?;
        Ok((!names.contains(&dead_letters)).then_some(()))
    })
    .await?;
    // Too large for either topic, which the sink detects before sending it.
    write_large(&session, &setup.topic, "a", LARGE).await?;
    relay
        .wait_for_state(503, "dead_letter_topic is unusable")
        .await?;
    let dead_letter =
        |state| format!("select count(*) from relay_dead_letters where in_topic = '{state}'");
    assert_eq!(session.client.count(&dead_letter("pending")).await?, 1);
    Addresses::shared().create_topic(&dead_letters, 1).await?;
    session.client.wait_for(&dead_letter("rejected"), 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// As after the table was recreated or its sequence was reset.
async fn rejected_events_that_share_a_seq_are_all_kept(sink: SinkKind) -> Result<()> {
    for (policy, table) in [
        (OnRejection::DeadLetter, "relay_dead_letters"),
        (OnRejection::ParkKey, "relay_parked"),
    ] {
        let (setup, session) = setup("same_seq", sink, policy).await?;
        let sql = &session.client;
        session.enqueue("no.such.topic", "a", 1).await?;
        let relay = setup.start().await?;
        let stored = format!("select count(*) from {table}");
        sql.wait_for(&stored, 1).await?;
        sql.batch_execute("select setval('outbox_seq', 1, false)")
            .await?;
        let seq = session.enqueue("no.such.topic", "b", 1).await?;
        assert_eq!(seq, 1);
        setup.write(&session, "c").await?;
        sql.wait_for(&stored, 2).await?;
        assert_eq!(versions_of(&setup.records(1).await?, "c"), [1]);
        relay.wait_for_readiness(200).await?;
        if policy == OnRejection::ParkKey {
            let parked = ParkedKeys::connect(&setup.config()?.sources[0]).await?;
            let keys = parked.list().await?;
            assert_eq!(keys.len(), 2, "{keys:?}");
            let DropOutcome::Ambiguous(event_ids) = parked.drop_event(1, None).await? else {
                anyhow::bail!("dropped one of two");
            };
            assert_eq!(event_ids.len(), 2);
            let of_b = keys.iter().find(|key| key.key == "b");
            let event_id = of_b.map(|key| key.rejected_event_id);
            assert_eq!(parked.drop_event(1, event_id).await?, DropOutcome::Dropped);
            sql.wait_for(&format!("{stored} where key = 'a'"), 1)
                .await?;
            sql.wait_for(&stored, 1).await?;
        }
        relay.stop().await?;
    }
    Ok(())
}

async fn rows_that_cannot_become_records_are_rejected_with_the_reason(
    sink: SinkKind,
) -> Result<()> {
    let (setup, session) = setup("no_record", sink, OnRejection::DeadLetter).await?;
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, headers, created_at)
         values ('{0}', 'a', 'made', 1, '{{\"ce_id\":\"another\"}}', now()),
             ('{0}', 'a', 'made', 2, null, 'infinity'), ('{0}', 'a', 'made', 3, null, '-infinity'),
             ('{0}', 'a', 'made', 4, null, now())",
        setup.topic
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    assert_eq!(versions_of(&setup.records(1).await?, "a"), [4]);
    let reasons = "select error from relay_dead_letters order by seq";
    let rows = session.client.query(reasons, &[]).await?;
    let reasons: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    for (reason, part) in reasons
        .iter()
        .zip(["contains ce_id", "created_at", "created_at"])
    {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    relay.stop().await
}

/// More than one statement stores, with new and repeated keys.
async fn every_dead_letter_of_a_page_is_stored_with_its_reason(sink: SinkKind) -> Result<()> {
    const ROWS: i64 = 2_100;
    let (mut setup, session) = setup("dead_letters", sink, OnRejection::DeadLetter).await?;
    setup.max_page_rows = 20_000;
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, headers)
         select '{}', 'key-' || n % 700, 'made', n,
             (array[null, '{{\"ce_id\":\"x\"}}', '{{\"ce_type\":\"x\"}}'])[n % 3 + 1]::jsonb
         from generate_series(1, {ROWS}) as n",
        setup.topic
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    let published = usize::try_from(ROWS / 3)?;
    assert_eq!(setup.records(published).await?.len(), published);
    let dead_letters = "select count(*) from relay_dead_letters
        where error like '%' || (select * from jsonb_object_keys(headers)) || '%'";
    session.client.wait_for(dead_letters, ROWS / 3 * 2).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// Postgres' DETAIL contains the whole row.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_error_shows_no_value_of_a_row() -> Result<()> {
    let (mut setup, session) = setup("detail", SinkKind::Kafka, OnRejection::DeadLetter).await?;
    setup.max_record_bytes = 1_000;
    let constraint = "alter table relay_dead_letters add constraint never check (key = '')";
    session.client.batch_execute(constraint).await?;
    write_large(&session, &setup.topic, "private-key", 2_000).await?;
    let relay = setup.start().await?;
    let text = relay
        .wait_for_state(503, "violates check constraint \"never\"")
        .await?;
    assert!(!text.contains("private-key"), "{text}");
    relay.stop().await
}
