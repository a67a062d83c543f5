//! A fault of the environment is not treated as a fault of the record, and dead letters can be retried.

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Audit, Kafka, Record, WorkDir, eventually, read_topic};
use outbox_relay::{
    DeadLetters, ParkedKeys, Retried, Selection,
    config::{OnRejection, SinkKind},
};
use serde_json::Value;

use crate::{
    acl::{AUTHORIZER, allow_writing, deny_writing},
    for_each_sink,
    harness::{Session, Setup, Writers},
};

for_each_sink! {
    a_revoked_permission_delays_events_and_loses_none,
    consecutive_rejections_halt_the_source,
    a_retried_dead_letter_is_published_by_the_running_leader,
    retries_that_the_broker_rejects_delay_no_other_event,
    a_retry_of_several_keys_publishes_all_but_the_rejected_one,
}

/// How long the permission is revoked. The variable `REVOKED_SECONDS` overrides it.
const REVOKED_SECONDS: u64 = 5;

async fn setup(test: &str, sink: SinkKind) -> Result<(Setup, Session)> {
    let mut setup = Setup::new(test, sink).await?;
    setup.on_rejection = OnRejection::DeadLetter;
    let session = Session::new(&setup.database).await?;
    Ok((setup, session))
}

fn versions_of(records: &[Record], key: &str) -> Vec<i64> {
    let of_key = records.iter().filter(|record| record.key == key);
    of_key.map(Record::version).collect()
}

/// With `dead_letter` and `halt`, granting the permission again is enough.
async fn a_revoked_permission_delays_events_and_loses_none(sink: SinkKind) -> Result<()> {
    let seconds =
        std::env::var("REVOKED_SECONDS").map_or(Ok(REVOKED_SECONDS), |text| text.parse())?;
    let work_dir = Arc::new(WorkDir::new()?);
    let kafka = Kafka::start_with_settings(&work_dir, &AUTHORIZER).await?;
    for policy in [
        OnRejection::DeadLetter,
        OnRejection::Halt,
        OnRejection::ParkKey,
    ] {
        let (mut setup, session) = setup("revoked", sink).await?;
        setup.on_rejection = policy;
        setup.brokers = kafka.brokers().to_owned();
        kafka.create_topic(&setup.topic, 3, &[]).await?;
        let mut writers = Writers::start(&setup.database, &setup.topic).await?;
        let relay = setup.start().await?;
        setup.records(100).await?;
        deny_writing(kafka.brokers(), &setup.topic).await?;
        if policy == OnRejection::ParkKey {
            session
                .client
                .wait_for("select least(count(*), 1) from relay_parked", 1)
                .await?;
        } else {
            let text = relay
                .wait_for_state(503, "was rejected and blocks this source")
                .await?;
            assert!(text.contains("Write"), "{text}");
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let dead_letters = "select count(*) from relay_dead_letters";
        assert_eq!(session.client.count(dead_letters).await?, 0);
        allow_writing(kafka.brokers(), &setup.topic).await?;
        if policy == OnRejection::ParkKey {
            let parked = ParkedKeys::connect(&setup.config()?.sources[0]).await?;
            eventually("no key is parked", async || {
                parked.retry(None).await?;
                Ok(parked.list().await?.is_empty().then_some(()))
            })
            .await?;
        }
        relay.wait_for_readiness(200).await?;
        writers.end().await?;
        let newest = setup.database.newest().await?;
        let audit = eventually("all rows in the topic", async || {
            let records = read_topic(kafka.brokers(), &setup.topic).await?;
            let audit = Audit::new(&newest, &records);
            Ok((audit.lost == 0).then_some(audit))
        })
        .await?;
        assert!(audit.is_clean(), "{policy:?}: {audit}");
        assert_eq!(session.client.count(dead_letters).await?, 0);
        relay.stop().await?;
    }
    kafka.process.stop().await;
    Ok(())
}

/// A missing topic could be one event's mistake, but hardly that of all events of a topic.
async fn consecutive_rejections_halt_the_source(sink: SinkKind) -> Result<()> {
    let (mut setup, session) = setup("consecutive", sink).await?;
    setup.max_consecutive_rejections = 3;
    let missing = Addresses::unique_name("missing");
    session.client.batch_execute("begin").await?;
    for version in 1..=5 {
        for key in ["a", "b"] {
            session.enqueue(&missing, key, version).await?;
        }
        // Published events of another topic do not count.
        setup_event(&setup, &session, version).await?;
    }
    session.client.batch_execute("commit").await?;
    let relay = setup.start().await?;
    let text = relay
        .wait_for_state(503, "was rejected and blocks this source")
        .await?;
    assert!(text.contains("max_consecutive_rejections"), "{text}");
    let dead_letters = "select count(*) from relay_dead_letters";
    assert_eq!(session.client.count(dead_letters).await?, 3);
    // The leader has loaded the parked keys.
    relay.wait_for_restarts(3).await?;
    // The recovery of the hint: nothing is published out of order.
    let commands = DeadLetters::connect(&setup.config()?.sources[0]).await?;
    let retried = commands.retry(&Selection::default()).await?;
    let all = Retried {
        moved: 3,
        remaining: 0,
    };
    assert_eq!(retried, all);
    // The halted leader parks the later events behind them.
    let parked = "select count(*) from relay_parked";
    session.client.wait_for(parked, 10).await?;
    Addresses::shared().create_topic(&missing, 1).await?;
    let parked = ParkedKeys::connect(&setup.config()?.sources[0]).await?;
    eventually("no key is parked", async || {
        parked.retry(None).await?;
        Ok(parked.list().await?.is_empty().then_some(()))
    })
    .await?;
    let records = eventually("every event", async || {
        let records = Addresses::shared().read_topic(&missing).await?;
        Ok((records.len() >= 10).then_some(records))
    })
    .await?;
    for key in ["a", "b"] {
        assert_eq!(versions_of(&records, key), [1, 2, 3, 4, 5]);
    }
    relay.wait_for_readiness(200).await?;
    assert_eq!(session.client.count(dead_letters).await?, 0);
    relay.stop().await
}

async fn setup_event(setup: &Setup, session: &Session, version: i64) -> Result<()> {
    session.enqueue(&setup.topic, "other", version).await?;
    Ok(())
}

async fn a_retried_dead_letter_is_published_by_the_running_leader(sink: SinkKind) -> Result<()> {
    let (setup, session) = setup("retried", sink).await?;
    let missing = Addresses::unique_name("missing");
    for version in 1..=2 {
        session.enqueue(&missing, "a", version).await?;
    }
    setup.write(&session, "b").await?;
    let relay = setup.start().await?;
    session
        .client
        .wait_for("select count(*) from relay_dead_letters", 2)
        .await?;
    Addresses::shared().create_topic(&missing, 1).await?;
    let commands = DeadLetters::connect(&setup.config()?.sources[0]).await?;
    let of_key = Selection {
        key: Some("a".into()),
        ..Selection::default()
    };
    let retried = commands.retry(&of_key).await?;
    assert_eq!(retried.moved, 2);
    let records = eventually("the dead letters", async || {
        let records = Addresses::shared().read_topic(&missing).await?;
        Ok((records.len() == 2).then_some(records))
    })
    .await?;
    assert_eq!(versions_of(&records, "a"), [1, 2]);
    session
        .client
        .wait_for("select count(*) from relay_parked", 0)
        .await?;
    relay.stop().await
}

/// The broker's rejection of a retried event makes the sink unusable, each time.
async fn retries_that_the_broker_rejects_delay_no_other_event(sink: SinkKind) -> Result<()> {
    const REJECTED: i64 = 10;
    let (setup, session) = setup("rejected_retries", sink).await?;
    let strict = Addresses::unique_name("strict");
    Addresses::shared().create_topic(&strict, 1).await?;
    let limit = [("message.timestamp.after.max.ms", "1000")];
    Addresses::shared().alter_topic(&strict, &limit).await?;
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, headers)
         select '{strict}', n::text, 'made', 1, '{{\"relay_timestamp_ms\": \"9999999999999\"}}'
         from generate_series(1, {REJECTED}) n"
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    let dead_letters = "select count(*) from relay_dead_letters";
    session.client.wait_for(dead_letters, REJECTED).await?;
    let commands = DeadLetters::connect(&setup.config()?.sources[0]).await?;
    commands.retry(&Selection::default()).await?;
    let retried = "select least(count(*), 1) from relay_parked where not retry";
    session.client.wait_for(retried, 1).await?;
    for _ in 0..50 {
        setup.write(&session, "other").await?;
    }
    setup.records(50).await?;
    let still_to_retry = "select count(*) from relay_parked where retry";
    assert!(session.client.count(still_to_retry).await? > REJECTED / 2);
    relay.stop().await
}

/// The broker rejects one event of the batch, and with it the sink.
async fn a_retry_of_several_keys_publishes_all_but_the_rejected_one(sink: SinkKind) -> Result<()> {
    let (mut setup, session) = setup("several_keys", sink).await?;
    setup.on_rejection = OnRejection::ParkKey;
    let strict = Addresses::unique_name("strict");
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, headers)
         select '{strict}', key, 'made', version,
             case when key = 'b' and version = 2 then '{{\"relay_timestamp_ms\": \"9999999999999\"}}'::jsonb end
         from generate_series(1, 20) as version, unnest(array['a', 'b', 'c']) as key"
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    let parked = "select count(*) from relay_parked";
    session.client.wait_for(parked, 60).await?;
    Addresses::shared().create_topic(&strict, 1).await?;
    let limit = [("message.timestamp.after.max.ms", "1000")];
    Addresses::shared().alter_topic(&strict, &limit).await?;
    let commands = ParkedKeys::connect(&setup.config()?.sources[0]).await?;
    commands.retry(None).await?;
    session.client.wait_for(parked, 19).await?;
    let listed = eventually("the new reason", async || {
        let listed = commands.list().await?;
        Ok(listed.iter().all(|key| !key.retry).then_some(listed))
    })
    .await?;
    let [of_b] = &*listed else {
        panic!("{listed:?}");
    };
    assert_eq!((&*of_b.key, of_b.events), ("b", 19));
    assert!(of_b.error.contains("timestamp"), "{of_b:?}");
    let records = Addresses::shared().read_topic(&strict).await?;
    for (key, last) in [("a", 20), ("b", 1), ("c", 20)] {
        // What was acknowledged before the rejection is repeated.
        let mut newest = 0;
        let first = versions_of(&records, key).into_iter();
        let first: Vec<i64> = first
            .filter(|version| {
                let is_first = *version > newest;
                newest = newest.max(*version);
                is_first
            })
            .collect();
        assert_eq!(first, (1..=last).collect::<Vec<_>>(), "{key}");
    }
    relay.stop().await
}

/// A configuration file, for the commands.
struct Commands {
    work_dir: WorkDir,
    config: std::path::PathBuf,
}

impl Commands {
    fn new(setup: &Setup) -> Result<Self> {
        let work_dir = WorkDir::new()?;
        let config = format!(
            "kafka.brokers = {:?}\n[[source]]\nname = 'test'\ndatabase_url = {:?}\n",
            setup.brokers, setup.database.url
        );
        let config = work_dir.write("outbox-relay.toml", &config)?;
        Ok(Self { work_dir, config })
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        let program = Path::new(env!("CARGO_BIN_EXE_outbox-relay"));
        let mut command = Command::new(program);
        command.args(args).args(["--source", "test", "--config"]);
        let command = command.arg(&self.config).current_dir(self.work_dir.path());
        command.output().context("failed to run the program")
    }

    /// Runs a command that succeeds. Returns its output.
    fn succeed(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        assert!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a command that fails. Returns its error.
    fn fail(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        assert!(!output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_retried_and_dropped() -> Result<()> {
    let (setup, session) = setup("commands", SinkKind::Kafka).await?;
    let insert = r#"insert into relay_dead_letters
            (source, seq, event_id, topic, key, event_type, payload, headers, error, dead_lettered_at)
        select 'test', n / 2, gen_random_uuid(), 'orders', 'key-' || n, 'made', '{"n": 1}', '{"x": "y"}', 'too large',
            clock_timestamp() - n * interval '1 day'
        from generate_series(4, 8) as n"#;
    session.client.batch_execute(insert).await?;
    let commands = Commands::new(&setup)?;

    let list = commands.succeed(&["dead-letters", "list", "--limit", "2"])?;
    assert!(
        list.contains("orders key-4: seq 2, dead-lettered at 20"),
        "{list}"
    );
    assert!(list.contains("there are more"), "{list}");
    let list = commands.succeed(&["dead-letters", "list", "--json"])?;
    let other_topic = commands.succeed(&["dead-letters", "list", "--topic", "users"])?;
    assert!(
        other_topic.contains("no such dead letters"),
        "{other_topic}"
    );
    let listed: Vec<Value> = list
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let seqs: Vec<_> = listed
        .iter()
        .filter_map(|one| one["seq"].as_i64())
        .collect();
    assert_eq!(seqs, [2, 2, 3, 3, 4]);

    let show = commands.succeed(&["dead-letters", "show", "--seq", "4", "--json"])?;
    let shown: Value = serde_json::from_str(&show)?;
    assert_eq!(shown["payload"], r#"{"n": 1}"#);
    assert_eq!(shown["headers"]["x"], "y");
    let show = commands.succeed(&["dead-letters", "show", "--seq", "4"])?;
    for line in [
        "key:               key-8",
        "stored_at:         20",
        "in_topic:          pending",
    ] {
        assert!(show.contains(line), "{line} in {show}");
    }

    // Two events share the seq.
    let error = commands.fail(&["dead-letters", "drop", "--seq", "2"])?;
    assert!(error.contains("--event-id"), "{error}");
    let event_id = listed[0]["event_id"].as_str().context("an id")?;
    let dropped = ["dead-letters", "drop", "--seq", "2", "--event-id", event_id];
    assert!(
        commands
            .succeed(&dropped)?
            .contains("deleted 1 dead letter\n")
    );
    let error = commands.fail(&dropped)?;
    assert!(error.contains("no dead letter that matches"), "{error}");
    let old = ["dead-letters", "drop", "--older-than-days", "7"];
    assert!(commands.succeed(&old)?.contains("deleted 2 dead letters"));
    // Neither selects everything by mistake.
    assert_eq!(
        commands.run(&["dead-letters", "drop"])?.status.code(),
        Some(64)
    );

    let retried = commands.succeed(&["dead-letters", "retry", "--all"])?;
    assert!(retried.contains("parked 2 dead letters"), "{retried}");
    let list = commands.succeed(&["dead-letters", "list"])?;
    assert!(list.contains("no such dead letters"), "{list}");
    let show = commands.succeed(&["parked", "show", "--seq", "3"])?;
    assert!(show.contains("too large"), "{show}");
    let parked = commands.succeed(&["parked", "list"])?;
    assert!(parked.contains("retry requested: too large"), "{parked}");
    let retried = commands.succeed(&["dead-letters", "retry", "--all"])?;
    assert!(retried.contains("no such dead letters"), "{retried}");

    // The index on parked keys has a limit.
    let insert = "insert into relay_dead_letters
            (source, seq, event_id, topic, key, event_type, payload, error)
        select 'test', 100 + n, gen_random_uuid(), case n when 1 then repeat('t', 3000) else 'orders' end,
            case n when 2 then repeat('k', 3000) else 'short' end, 'made', '\\xff', 'too large'
        from generate_series(1, 3) as n";
    session.client.batch_execute(insert).await?;
    let retried = commands.succeed(&["dead-letters", "retry", "--all"])?;
    assert!(retried.contains("parked 1 dead letter;"), "{retried}");
    assert!(retried.contains("2 dead letters not retried"), "{retried}");
    let show = commands.succeed(&["parked", "show", "--seq", "103", "--json"])?;
    let shown: Value = serde_json::from_str(&show)?;
    assert_eq!(shown["payload"], r"\xff");
    assert_eq!(shown["is_payload_escaped"], true);
    Ok(())
}
