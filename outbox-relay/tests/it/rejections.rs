//! Records that Kafka rejects for good, under each policy. A record of 2 MB for a topic that takes one.

use ::rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
};
use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Home, Kafka, Record, eventually};
use outbox_relay::{
    Dropped, Parked,
    config::{OnRejection, SinkKind},
};

use crate::{
    acl::{AUTHORIZER, forbid_writing},
    for_each_sink,
    harness::Session,
    publishing::Setup,
};

for_each_sink! {
    halt_lets_nothing_pass,
    a_parked_key_waits_and_others_go_on,
    a_dropped_event_leaves_a_record_and_frees_its_key,
    a_dead_letter_is_in_the_table_and_in_the_topic,
    a_rejection_by_the_broker_is_narrowed_down_to_its_record,
    a_batch_that_is_rejected_takes_no_other_row_along,
    a_topic_that_may_not_be_written_to_holds_no_other_up,
    what_is_in_front_of_a_rejected_row_is_not_repeated,
    what_waits_behind_a_parked_key_is_kept_when_the_source_halts,
    a_source_that_halts_reads_one_row_a_try_and_not_a_page,
    a_missing_dead_letter_topic_is_told_before_anything_is_published,
    a_dead_letter_waits_for_a_topic_that_was_deleted,
    an_event_that_was_set_aside_stays_beside_another_with_its_seq,
    rows_that_make_no_record_are_rejected_with_the_reason,
    dead_letters_of_a_page_are_all_recorded_each_with_its_reason,
}

const LARGE: usize = 2_000_000;

async fn setup(test: &str, sink: SinkKind, on_rejection: OnRejection) -> Result<(Setup, Session)> {
    let mut setup = Setup::new(test, sink).await?;
    setup.on_rejection = on_rejection;
    setup.max_record_bytes = 4_000_000;
    let session = Session::new(&setup.database).await?;
    Ok((setup, session))
}

/// Changes `key`, and tells of it at such length; returns the event's seq.
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

async fn halt_lets_nothing_pass(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("halt", sink, OnRejection::Halt).await?;
    setup.write(&session, "a").await?;
    write_large(&session, &setup.topic, "a", LARGE).await?;
    setup.write(&session, "b").await?;
    let relay = setup.start().await?;
    relay.wait_for_state(503, "is in the way").await?;
    assert_eq!(setup.records(1).await?.len(), 1);
    // The way out: the topic takes it from now on.
    set_limit(&setup.topic, 4_000_000).await?;
    let records = setup.records(3).await?;
    assert_eq!(versions_of(&records, "a"), [1, 2]);
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

async fn a_parked_key_waits_and_others_go_on(sink: SinkKind) -> Result<()> {
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
    let parked = Parked::of(&setup.config()?.sources[0]).await?;
    let key = eventually("a parked key with all its events", async || {
        let keys = parked.list().await?;
        Ok(keys.into_iter().find(|key| key.events == 3))
    })
    .await?;
    assert_eq!((key.key.as_str(), key.rejected_seq), ("a", rejected));
    assert!(key.error.contains(&setup.topic), "{}", key.error);
    // Another try changes nothing while the reason is still there ...
    assert_eq!(parked.retry(Some("a")).await?, 1);
    eventually("the end of a try", async || {
        Ok(parked
            .list()
            .await?
            .iter()
            .all(|key| !key.retry)
            .then_some(()))
    })
    .await?;
    relay.stop().await?;
    // ... and survives a restart. Without the reason, everything follows in order, and what comes
    // later goes its usual way.
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

async fn a_dropped_event_leaves_a_record_and_frees_its_key(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("drop", sink, OnRejection::ParkKey).await?;
    let rejected = write_large(&session, &setup.topic, "a", LARGE).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    let parked = Parked::of(&setup.config()?.sources[0]).await?;
    eventually("a parked key", async || {
        Ok(parked
            .list()
            .await?
            .iter()
            .any(|key| key.events == 2)
            .then_some(()))
    })
    .await?;
    assert_eq!(parked.drop_event(rejected, None).await?, Dropped::One);
    assert_eq!(parked.drop_event(rejected, None).await?, Dropped::None);
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
    let lost = session.enqueue("nobody.made.this", "a", version).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    assert_eq!(versions_of(&setup.records(1).await?, "a"), [3]);
    let dead = eventually("a dead letter in its topic", async || {
        Ok(Addresses::shared().read_topic(&dead_letters).await?.pop())
    })
    .await?;
    assert_eq!((dead.key.as_str(), dead.version()), ("a", 2));
    assert_eq!(dead.header("dead_letter_topic"), Some("nobody.made.this"));
    assert_eq!(dead.header("dead_letter_seq"), Some(&*lost.to_string()));
    let error = dead.header("dead_letter_error").unwrap_or_default();
    assert!(error.contains("nobody.made.this"), "{error}");
    // The large one is rejected there, too. The table has both.
    let settled = "select count(*) from relay_dead_letters where in_topic <> 'pending'";
    session.client.wait_for(settled, 2).await?;
    let sql = "select seq, in_topic, error from relay_dead_letters order by seq";
    let rows = session.client.query(sql, &[]).await?;
    let states: Vec<(i64, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(states, [(large, "rejected"), (lost, "sent")]);
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// The broker rejects whole batches, and says nothing of which record it was.
async fn a_rejection_by_the_broker_is_narrowed_down_to_its_record(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("narrow", sink, OnRejection::ParkKey).await?;
    setup.write(&session, "warm").await?;
    let relay = setup.start().await?;
    setup.records(1).await?;
    // The sink has asked for the limit, and does not know that it is another now.
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
    let parked = Parked::of(&setup.config()?.sources[0]).await?;
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
    relay.wait_for_readiness(200).await.context("all is well")?;
    relay.stop().await
}

/// No row is too large, but what is on its way together is: while rows are still handed over, the
/// sink tells of the rejection, and it is none of theirs.
async fn a_batch_that_is_rejected_takes_no_other_row_along(sink: SinkKind) -> Result<()> {
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
            let told: HashSet<_> = records.iter().map(|r| (&r.key, r.version())).collect();
            Ok((told.len() == ROWS + 1).then_some(()))
        })
        .await?;
        let dead_lettered = "select (select count(*) from relay_parked)
                              + (select count(*) from relay_dead_letters)";
        assert_eq!(session.client.count(dead_lettered).await?, 0);
        relay.stop().await?;
    }
    Ok(())
}

/// A broker that takes everything but what is for one topic.
async fn forbidding(sink: SinkKind, on_rejection: OnRejection) -> Result<Forbidding> {
    let home = Arc::new(Home::new()?);
    let kafka = Kafka::start_with_settings(&home, &AUTHORIZER).await?;
    let (mut setup, session) = setup("forbidden", sink, on_rejection).await?;
    setup.brokers = kafka.brokers().to_owned();
    let forbidden = format!("{}_forbidden", setup.topic);
    for topic in [&setup.topic, &forbidden] {
        kafka.create_topic(topic, 3, &[]).await?;
    }
    forbid_writing(kafka.brokers(), &forbidden).await?;
    Ok(Forbidding {
        kafka,
        setup,
        session,
        forbidden,
    })
}

struct Forbidding {
    kafka: Kafka,
    setup: Setup,
    session: Session,
    forbidden: String,
}

/// Whatever keeps it from publishing, it goes on from where it was.
async fn what_is_in_front_of_a_rejected_row_is_not_repeated(sink: SinkKind) -> Result<()> {
    const ROWS: usize = 300;
    let Forbidding {
        kafka,
        mut setup,
        session,
        forbidden,
    } = forbidding(sink, OnRejection::Halt).await?;
    setup.max_page_rows = 20_000;
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, payload)
         select '{}', 'key-' || n % 10, 'made', n, '{{}}' from generate_series(1, {ROWS}) as n;
         insert into outbox (topic, key, event_type, aggregate_version, payload)
         values ('{forbidden}', 'key-1', 'made', 1000, '{{}}')",
        setup.topic
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    relay.wait_for_state(503, "is in the way").await?;
    let count = setup.records(ROWS).await?.len();
    // Several tries more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(setup.records(ROWS).await?.len(), count);
    // Once with all the others, and once one by one.
    assert!(count <= 2 * ROWS, "{count} records of {ROWS} rows");
    relay.stop().await?;
    kafka.process.stop().await;
    Ok(())
}

/// Of this nothing but an answer to a whole batch tells: it is sent again, one record at a time.
async fn a_topic_that_may_not_be_written_to_holds_no_other_up(sink: SinkKind) -> Result<()> {
    let Forbidding {
        kafka,
        setup,
        session,
        forbidden,
    } = forbidding(sink, OnRejection::ParkKey).await?;
    session.client.batch_execute("begin").await?;
    for key in ["a", "b", "a", "b"] {
        for topic in [&setup.topic, &forbidden] {
            let version = session.change(key).await?;
            session.enqueue(topic, key, version).await?;
        }
    }
    session.client.batch_execute("commit").await?;
    let relay = setup.start().await?;
    eventually("the other topic's records", async || {
        // The brokers took some with the batch that they rejected a part of: these come twice.
        let records = setup.records(1).await?;
        let newest = |key| versions_of(&records, key).last().copied();
        Ok((newest("a") == Some(3) && newest("b") == Some(3)).then_some(()))
    })
    .await?;
    relay.wait_for_readiness(200).await?;
    let parked = Parked::of(&setup.config()?.sources[0]).await?;
    let keys = eventually("two parked keys", async || {
        let keys = parked.list().await?;
        Ok((keys.iter().map(|key| key.events).sum::<i64>() == 4).then_some(keys))
    })
    .await?;
    assert!(keys.iter().all(|key| key.topic == forbidden), "{keys:?}");
    relay.stop().await?;
    kafka.process.stop().await;
    Ok(())
}

/// The page ends with an error while events of a parked key wait to be stored.
async fn what_waits_behind_a_parked_key_is_kept_when_the_source_halts(
    sink: SinkKind,
) -> Result<()> {
    let (setup, session) = setup("behind", sink, OnRejection::ParkKey).await?;
    let missing = Addresses::unique_name("missing");
    session.enqueue(&missing, "hot", 1).await?;
    let relay = setup.start().await?;
    let parked = "select count(*) from relay_parked";
    session.client.wait_for(parked, 1).await?;
    // Nothing more can be parked for a reason of its own.
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
    let mend = "alter table relay_parked drop constraint full_up";
    session.client.batch_execute(mend).await?;
    session.client.wait_for(parked, 5).await?;
    Addresses::shared().create_topic(&missing, 1).await?;
    let source = &setup.config()?.sources[0];
    Parked::of(source).await?.retry(None).await?;
    session.client.wait_for(parked, 0).await?;
    let records = Addresses::shared().read_topic(&missing).await?;
    assert_eq!(versions_of(&records, "hot"), [1, 2, 3, 4]);
    assert_eq!(versions_of(&records, "another"), [1]);
    relay.stop().await
}

async fn a_source_that_halts_reads_one_row_a_try_and_not_a_page(sink: SinkKind) -> Result<()> {
    // Fewer than two pages for each of the tries, and more than what measures the backlog looks at.
    const ROWS: usize = 20_000;
    const TRIES: i64 = 8;
    let (mut setup, session) = setup("tries", sink, OnRejection::Halt).await?;
    setup.max_page_rows = 20_000;
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version)
         select '{}', 'a', 'made', n from generate_series(1, {ROWS}) as n",
        Addresses::unique_name("missing")
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    let tries = "select epoch from relay_checkpoints";
    eventually("some tries", async || {
        Ok((session.client.count(tries).await? > TRIES).then_some(()))
    })
    .await?;
    relay.stop().await?;
    // Two pages, the second of which is read ahead, at the first try alone.
    let fetched = usize::try_from(setup.database.rows_fetched().await?)?;
    assert!(fetched < ROWS, "{fetched}");
    Ok(())
}

/// They are read a page at a time, and a page ends by its bytes, too.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_larger_than_a_page_all_come_to_their_topic() -> Result<()> {
    let (mut setup, session) =
        setup("large_letters", SinkKind::Kafka, OnRejection::DeadLetter).await?;
    let dead_letters = Addresses::unique_name("large_letters");
    Addresses::shared().create_topic(&dead_letters, 1).await?;
    setup.dead_letter_topic = Some(dead_letters);
    let pending = "insert into relay_dead_letters
            (source, seq, event_id, topic, key, event_type, payload, error)
        select 'test', n, gen_random_uuid(), 'nobody.made.this', 'a', 'made',
            convert_to(repeat('x', 900000), 'UTF8'), 'it was rejected'
        from generate_series(1, 25) as n";
    session.client.batch_execute(pending).await?;
    let relay = setup.start().await?;
    let sent = "select count(*) from relay_dead_letters where in_topic = 'sent'";
    session.client.wait_for(sent, 25).await?;
    relay.stop().await
}

/// What goes there is tried once, so it would all be rejected for good.
async fn a_missing_dead_letter_topic_is_told_before_anything_is_published(
    sink: SinkKind,
) -> Result<()> {
    let (mut setup, session) = setup("no_letters", sink, OnRejection::DeadLetter).await?;
    let missing = Addresses::unique_name("missing");
    setup.dead_letter_topic = Some(missing.clone());
    session.enqueue("nobody.made.this", "a", 1).await?;
    let relay = setup.start().await?;
    let text = relay.wait_for_state(503, &missing).await?;
    assert!(text.contains("create it"), "{text}");
    Addresses::shared().create_topic(&missing, 1).await?;
    relay.wait_for_readiness(200).await?;
    let sent = "select count(*) from relay_dead_letters where in_topic = 'sent'";
    session.client.wait_for(sent, 1).await?;
    relay.stop().await
}

async fn a_dead_letter_waits_for_a_topic_that_was_deleted(sink: SinkKind) -> Result<()> {
    let (mut setup, session) = setup("letters_gone", sink, OnRejection::DeadLetter).await?;
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
    // Too large for either topic, which is found out before it is sent.
    write_large(&session, &setup.topic, "a", LARGE).await?;
    relay
        .wait_for_state(503, "dead_letter_topic can't be used")
        .await?;
    let dead_letter =
        |state| format!("select count(*) from relay_dead_letters where in_topic = '{state}'");
    assert_eq!(session.client.count(&dead_letter("pending")).await?, 1);
    Addresses::shared().create_topic(&dead_letters, 1).await?;
    session.client.wait_for(&dead_letter("rejected"), 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

/// As after a table was made anew, or its sequence was set back: the numbers begin again.
async fn an_event_that_was_set_aside_stays_beside_another_with_its_seq(
    sink: SinkKind,
) -> Result<()> {
    for (policy, table) in [
        (OnRejection::DeadLetter, "relay_dead_letters"),
        (OnRejection::ParkKey, "relay_parked"),
    ] {
        let (setup, session) = setup("same_seq", sink, policy).await?;
        let sql = &session.client;
        session.enqueue("nobody.made.this", "a", 1).await?;
        let relay = setup.start().await?;
        let stored = format!("select count(*) from {table}");
        sql.wait_for(&stored, 1).await?;
        sql.batch_execute("select setval('outbox_seq', 1, false)")
            .await?;
        let seq = session.enqueue("nobody.made.this", "b", 1).await?;
        assert_eq!(seq, 1);
        setup.write(&session, "c").await?;
        sql.wait_for(&stored, 2).await?;
        assert_eq!(versions_of(&setup.records(1).await?, "c"), [1]);
        relay.wait_for_readiness(200).await?;
        if policy == OnRejection::ParkKey {
            let parked = Parked::of(&setup.config()?.sources[0]).await?;
            let keys = parked.list().await?;
            assert_eq!(keys.len(), 2, "{keys:?}");
            let Dropped::Ambiguous(event_ids) = parked.drop_event(1, None).await? else {
                anyhow::bail!("dropped one of two");
            };
            assert_eq!(event_ids.len(), 2);
            let of_b = keys.iter().find(|key| key.key == "b");
            let event_id = of_b.map(|key| key.rejected_event_id);
            assert_eq!(parked.drop_event(1, event_id).await?, Dropped::One);
            sql.wait_for(&format!("{stored} where key = 'a'"), 1)
                .await?;
            sql.wait_for(&stored, 1).await?;
        }
        relay.stop().await?;
    }
    Ok(())
}

async fn rows_that_make_no_record_are_rejected_with_the_reason(sink: SinkKind) -> Result<()> {
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
        .zip(["has ce_id", "created_at", "created_at"])
    {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    relay.stop().await
}

/// More than are stored at once, of new keys and of old ones.
async fn dead_letters_of_a_page_are_all_recorded_each_with_its_reason(
    sink: SinkKind,
) -> Result<()> {
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
