//! The most frequent configuration mistakes: `check` reports each in one line with a hint, and `run` exits or reports the same
//! in `/readyz`. One mistake per test, in a database whose role has only the privileges of docs/relay/security.md.

mod setting;

use std::sync::Arc;

use anyhow::Result;
use devstack::{Addresses, Kafka, PgBouncer, PoolMode, WorkDir};
use tokio::net::TcpListener;

use self::setting::{Parts, Setting};
use crate::{
    acl::{AUTHORIZER, Allowed, allow},
    rejections::set_limit,
};

/// A mistake and the expected messages.
struct Mistake {
    /// Statements that cause it; ROLE is the relay's role, TOPIC the topic.
    sql: &'static str,
    /// The mistake in the configuration.
    change: fn(&mut Parts),
    /// Parts of the only failure that `check` prints.
    check: &'static [&'static str],
    /// The behavior of `run`.
    run: Run,
}

enum Run {
    /// `/readyz` returns 503 with these parts.
    NotReady(&'static [&'static str]),
    /// It exits with 64 and prints the same as `check`.
    Exits,
    /// It publishes nevertheless.
    Publishes,
}

const MISTAKE: Mistake = Mistake {
    sql: "",
    change: |_| (),
    check: &[],
    run: Run::Exits,
};

/// A test for each of these mistakes.
macro_rules! mistakes {
    ($($test:ident: $mistake:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() -> Result<()> {
            assert_reported(stringify!($test), $mistake).await
        })*
    };
}

mistakes! {
    wrong_password: Mistake {
        change: |parts| parts.password = "hunter2".into(),
        check: &["password authentication failed", "Hint: Set name and password"],
        run: Run::NotReady(&["password authentication failed", "Hint: Set name and password"]),
        ..MISTAKE
    };
    unknown_host: Mistake {
        change: |parts| parts.server = "nowhere.invalid:5432".into(),
        check: &["failed to connect to the database", "Check that Postgres is running, and that host, port and password in database_url are correct."],
        run: Run::NotReady(&["failed to connect to the database", "that host, port and password in database_url are correct"]),
        ..MISTAKE
    };
    wrong_port: Mistake {
        change: |parts| parts.server = "127.0.0.1:1".into(),
        check: &["Connection refused", "that host, port and password in database_url are correct"],
        run: Run::NotReady(&["Connection refused", "that host, port and password in database_url are correct"]),
        ..MISTAKE
    };
    missing_database: Mistake {
        change: |parts| parts.database = "elsewhere".into(),
        check: &[r#"database "elsewhere" does not exist"#, "Create the database"],
        run: Run::NotReady(&[r#"database "elsewhere" does not exist"#, "Create the database"]),
        ..MISTAKE
    };
    missing_select: Mistake {
        sql: "revoke select on outbox from ROLE",
        check: &["lacks SELECT on outbox. Hint: grant select on outbox to "],
        run: Run::NotReady(&["permission denied for table outbox", "outbox-relay check"]),
        ..MISTAKE
    };
    missing_truncate: Mistake {
        sql: "revoke truncate on outbox_0, outbox_5 from ROLE",
        check: &["lacks TRUNCATE on outbox_0, outbox_5. Hint: grant truncate on outbox_0, outbox_5 to "],
        run: Run::Publishes,
        ..MISTAKE
    };
    missing_update_on_the_checkpoint: Mistake {
        sql: "revoke update on relay_checkpoints from ROLE",
        check: &["lacks UPDATE on relay_checkpoints. Hint: grant update on relay_checkpoints to "],
        run: Run::NotReady(&["permission denied for table relay_checkpoints", "outbox-relay check"]),
        ..MISTAKE
    };
    missing_table: Mistake {
        sql: "drop table outbox",
        check: &["table outbox does not exist", "crates/outbox/migrations"],
        run: Run::NotReady(&[r#"relation "outbox" does not exist"#, "crates/outbox/migrations"]),
        ..MISTAKE
    };
    missing_column: Mistake {
        sql: "alter table outbox drop column traceparent",
        check: &["column traceparent of outbox is missing. Hint: alter table outbox add column traceparent text"],
        run: Run::NotReady(&[r#"column "traceparent" does not exist"#, "outbox-relay check"]),
        ..MISTAKE
    };
    missing_index: Mistake {
        sql: "drop index outbox_seq_idx",
        check: &["there is no index on seq of outbox_0, ", "create index on outbox (seq)"],
        run: Run::Publishes,
        ..MISTAKE
    };
    missing_default: Mistake {
        sql: "alter table outbox alter column xid drop default",
        check: &["column xid of outbox has no default", "default pg_current_xact_id()"],
        run: Run::Publishes,
        ..MISTAKE
    };
    cached_sequence: Mistake {
        sql: "alter sequence outbox_seq cache 20",
        check: &["outbox_seq caches 20 numbers for each session", "alter sequence outbox_seq cache 1"],
        run: Run::Publishes,
        ..MISTAKE
    };
    missing_usage_on_the_sequence: Mistake {
        sql: "create role ROLE_writer; grant insert on outbox to ROLE_writer",
        check: &["_writer has INSERT on outbox but lacks USAGE on sequence outbox_seq",
            "grant usage on sequence outbox_seq to "],
        run: Run::Publishes,
        ..MISTAKE
    };
    rows_hidden_by_row_level_security: Mistake {
        sql: "alter table outbox enable row level security",
        check: &["row-level security hides rows of outbox from role ", " bypassrls"],
        run: Run::NotReady(&["row-level security", "outbox-relay check"]),
        ..MISTAKE
    };
    connection_limit: Mistake {
        sql: "alter role ROLE connection limit 4",
        check: &["permits 4 connections, but a source can need five at once", "connection limit -1"],
        run: Run::Publishes,
        ..MISTAKE
    };
    missing_usage_on_the_schema: Mistake {
        sql: "create schema app; create table app.events ()",
        change: |parts| parts.source += "table = 'app.events'\n",
        check: &["lacks USAGE on schema app. Hint: grant usage on schema app to "],
        run: Run::NotReady(&["permission denied for schema app", "outbox-relay check"]),
    };
    a_checkpoint_of_another_table: Mistake {
        sql: "insert into relay_checkpoints
                  (source, epoch, snapshot, max_seq, heartbeat_at, resigned, outbox)
              values ('test', 1, '3:3:', 0, now(), true, 'relay_parked'::regclass)",
        check: &["the checkpoint belongs to another table than outbox", "outbox-relay reset --source test"],
        run: Run::NotReady(&["the checkpoint belongs to another table than outbox", "outbox-relay reset --source test"]),
        ..MISTAKE
    };
    unavailable_kafka: Mistake {
        change: |parts| parts.brokers = "127.0.0.1:1".into(),
        check: &["127.0.0.1:1: Connection refused", "Check that the brokers are running"],
        run: Run::NotReady(&["127.0.0.1:1: Connection refused", "Check that the brokers are running"]),
        ..MISTAKE
    };
    a_port_that_is_not_kafka: Mistake {
        change: |parts| parts.brokers = parts.server.clone(),
        check: &["failed to produce to Kafka", "a Kafka listener"],
        run: Run::NotReady(&["failed to produce to Kafka", "Check that the brokers are running"]),
        ..MISTAKE
    };
    missing_topic: Mistake {
        sql: "insert into outbox (topic, key, event_type, aggregate_version)
              values ('missing.v1', 'a', 'made', 1)",
        check: &["topic missing.v1 does not exist. Hint: Create it"],
        run: Run::NotReady(&["failed to produce to topic missing.v1: the topic does not exist", "Create the topic"]),
        ..MISTAKE
    };
    missing_dead_letter_topic: Mistake {
        change: |parts| parts.source += "dead_letter_topic = 'missing.dlq'\n",
        check: &["topic missing.dlq does not exist. Hint: Create it"],
        run: Run::NotReady(&["dead_letter_topic is unusable", "Create the topic"]),
        ..MISTAKE
    };
    batches_larger_than_the_topic_accepts: Mistake {
        sql: "insert into outbox (topic, key, event_type, aggregate_version)
              values ('TOPIC', 'a', 'made', 1)",
        change: |parts| parts.sink = "rdkafka",
        check: &["librdkafka sends batches of up to 1000000 bytes", "Set kafka.max_record_bytes to 20000"],
        run: Run::Publishes,
    };
    a_row_larger_than_the_topic_accepts: Mistake {
        sql: "insert into outbox (topic, key, event_type, aggregate_version, payload)
              values ('TOPIC', 'a', 'made', 1, convert_to(repeat('x', 50000), 'UTF8'))",
        check: &["makes a record of about 50401 bytes", "Raise max.message.bytes (20000)"],
        run: Run::NotReady(&["which exceeds the topic's max.message.bytes (20000 bytes)", "raise the named limit"]),
        ..MISTAKE
    };
    missing_migration: Mistake {
        sql: "alter table relay_dead_letters drop column dead_lettered_at",
        check: &["table relay_dead_letters lacks column dead_lettered_at", "Run the new migrations of crates/outbox"],
        run: Run::Publishes,
        ..MISTAKE
    };
    restored_dump: Mistake {
        sql: "insert into relay_checkpoints
                  (source, epoch, snapshot, max_seq, heartbeat_at, resigned)
              values ('test', 1, '99999999:99999999:', 0, now(), true)",
        check: &["restored from a dump", "outbox-relay reset --source test"],
        run: Run::NotReady(&["restored from a dump", "outbox-relay reset --source test"]),
        ..MISTAKE
    };
    misspelled_setting: Mistake {
        change: |parts| parts.source += "databse_url = 'postgres://relay:hunter2@host/db'\n",
        check: &["line 9: unknown field `databse_url`, expected one of", "`database_url`"],
        ..MISTAKE
    };
    two_sources_with_one_name: Mistake {
        change: |parts| {
            parts.source += "[[source]]\nname = 'Test'\ndatabase_url = 'postgres://relay@host/db'\n";
        },
        check: &["Test: duplicate source name; give each source a unique name"],
        ..MISTAKE
    };
    missing_secrets_file: Mistake {
        change: |parts| parts.database_url_file = Some("/nowhere/secret".into()),
        check: &["/nowhere/secret: No such file or directory", "check that the file exists and is readable"],
        ..MISTAKE
    };
    unreadable_secrets_file: Mistake {
        // A folder: to a test that runs as root every file can be read.
        change: |parts| parts.database_url_file = Some("/".into()),
        check: &["/: Is a directory", "check that the file exists and is readable"],
        ..MISTAKE
    };
}

async fn assert_reported(test: &str, mistake: Mistake) -> Result<()> {
    let mut setting = Setting::new(test).await?;
    set_limit(&setting.topic, 20_000).await?;
    setting.administer(mistake.sql).await?;
    (mistake.change)(&mut setting.parts);
    let (code, lines) = setting.failures("check").await?;
    let [line] = lines.as_slice() else {
        panic!("expected one failure: {lines:#?}");
    };
    assert_eq!(code, Some(64), "{line}");
    assert_contains(line, mistake.check);
    match mistake.run {
        Run::Exits => assert_eq!(setting.failures("run").await?, (code, lines)),
        Run::Publishes => {
            setting.run()?.wait_for(200, &["test: idle"]).await?;
        }
        Run::NotReady(words) => {
            let mut relay = setting.run()?;
            relay.wait_for(503, words).await?;
            // The same error is logged once.
            relay.wait_for_restarts(3).await?;
            let log = relay.kill()?;
            let is_failure = |line: &&str| {
                line.contains("source failed, restarting from checkpoint")
                    || line.contains(" halted")
            };
            assert_eq!(log.lines().filter(is_failure).count(), 1, "{log}");
            assert!(
                !log.contains("panicked") && !log.contains("hunter2"),
                "{log}"
            );
        }
    }
    Ok(())
}

fn assert_contains(text: &str, words: &[&str]) {
    for part in words {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pooler_in_transaction_mode() -> Result<()> {
    let mut setting = Setting::new("pooler").await?;
    let url = setting.database.url.clone();
    let pooler = PgBouncer::start(&url, PoolMode::Transaction, &[]).await?;
    setting.parts.server = pooler.address().to_owned();
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(64), "{text}");
    assert!(
        text.contains("connection pooler in transaction mode"),
        "{text}"
    );
    assert!(
        text.contains("Hint: Set the host and port of Postgres"),
        "{text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_each_passed_check_on_its_own_line() -> Result<()> {
    let setting = Setting::new("all_is_well").await?;
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "PASS     admin_addr: 127.0.0.1:".to_owned(),
        "PASS     test: Postgres 1".to_owned(),
        "PASS     test: every partition has indexes on seq and xid".to_owned(),
        format!(
            "PASS     test: topic {}: 3 partitions, cleanup.policy compact",
            setting.topic
        ),
    ] {
        assert!(text.contains(&part), "{part} in {text}");
    }
    let (_, json) = setting.output(&["check", "--json"]).await?;
    for line in json.lines() {
        let finding: serde_json::Value = serde_json::from_str(line)?;
        assert!(
            ["pass", "note"].contains(&finding["level"].as_str().unwrap_or_default()),
            "{finding}"
        );
    }
    // Nothing was changed: there is no leader yet.
    let client = setting.database.connect().await?;
    assert_eq!(
        client
            .count("select count(*) from relay_checkpoints")
            .await?,
        0
    );
    Ok(())
}

/// A check that cannot run neither passes nor prevents the others.
#[tokio::test(flavor = "multi_thread")]
async fn check_reports_what_it_could_not_check_with_the_reason() -> Result<()> {
    let setting = Setting::new("unknown").await?;
    setting
        .administer(
            "revoke select on pg_subscription_rel from public;
             revoke select on sequence outbox_seq from ROLE;
             create function next_number() returns bigint language sql as $$select nextval('outbox_seq')$$;
             create table numbered (like outbox including all);
             alter table numbered alter seq set default next_number();
             grant select on numbered to ROLE;
             truncate outbox",
        )
        .await?;
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    let mut lines = vec![
        "UNKNOWN  test: could not check that no subscription writes to the outbox: ",
        "UNKNOWN  test: could not check that sequence outbox_seq is not behind the outbox. Hint: \
         Grant select on sequence outbox_seq",
        "UNKNOWN  test: no topic was checked: the outbox has no rows",
        "PASS     test: every partition has indexes on seq and xid",
        "PASS     kafka: 1 broker",
        "passed, 0 failed, 3 unknown",
    ];
    assert_contains(&text, &lines);
    // Numbers that come from a function.
    let mut setting = setting;
    setting.parts.source += "table = 'numbered'\n";
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    lines = vec![
        "UNKNOWN  test: could not check the default of column seq of \"numbered\", which is next_number()",
        "UNKNOWN  test: could not check how column seq of \"numbered\" gets its numbers",
    ];
    assert_contains(&text, &lines);
    // The topics cannot be checked without a broker.
    setting.parts.brokers = "127.0.0.1:1".into();
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(64), "{text}");
    assert_contains(
        &text,
        &["UNKNOWN  test: the topics of this source were not checked"],
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_standard_output_is_not_a_failure() -> Result<()> {
    let setting = Setting::new("seen_enough").await?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let (code, text) = setting.output_to(writer, &["check"]).await?;
    assert_eq!((code, text.as_str()), (Some(0), ""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn retrying_a_key_that_is_not_parked_fails() -> Result<()> {
    let setting = Setting::new("not_parked").await?;
    let retry = ["parked", "retry", "--source", "test", "--key", "none"];
    let (code, text) = setting.output(&retry).await?;
    assert_eq!(code, Some(70), "{text}");
    assert_contains(&text, &["key \"none\" of source test is not parked"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_without_a_running_relay_prints_how_to_start_it() -> Result<()> {
    let setting = Setting::new("not_running").await?;
    let (code, text) = setting.output(&["status"]).await?;
    assert_eq!(code, Some(70), "{text}");
    assert_contains(
        &text,
        &["no relay responds at 127.0.0.1:", "`outbox-relay run`"],
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_names_the_leader() -> Result<()> {
    let setting = Setting::new("standby").await?;
    let client = setting.database.connect().await?;
    let lock =
        "select pg_backend_pid() from pg_advisory_lock(hashtextextended('outbox-relay test', 0))";
    let pid: i32 = client.query_one(lock, &[]).await?.get(0);
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    let holder = format!("Postgres session {pid}");
    assert!(
        text.contains(&format!("NOTE     test: the leader is {holder}")),
        "{text}"
    );
    let relay = setting.run()?;
    relay
        .wait_for(200, &["test: standby, the leader is ", &holder])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_port_in_use_is_a_configuration_error() -> Result<()> {
    let mut setting = Setting::new("admin_addr").await?;
    let other = TcpListener::bind("127.0.0.1:0").await?;
    setting.parts.admin_addr = other.local_addr()?;
    // It accepts connections and closes them.
    tokio::spawn(async move { while other.accept().await.is_ok() {} });
    for command in ["check", "run"] {
        let (code, lines) = setting.failures(command).await?;
        assert_eq!((code, lines.len()), (Some(64), 1), "{lines:?}");
        assert_contains(
            &lines[0],
            &[
                "admin_addr: failed to listen on 127.0.0.1:",
                "Hint: Set another address",
            ],
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transactional_id_that_is_not_allowed_is_reported() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let kafka = Kafka::start_with_settings(&work_dir, &AUTHORIZER).await?;
    let mut setting = Setting::new("names").await?;
    kafka.create_topic(&setting.topic, 1, &[]).await?;
    setting.parts.brokers = kafka.brokers().to_owned();
    allow(kafka.brokers(), "User:*", &[Allowed::topic("*")]).await?;
    let names = Allowed::transactional_id("outbox-relay.");
    allow(kafka.brokers(), "User:other", &[names]).await?;
    let (code, lines) = setting.failures("check").await?;
    assert_eq!((code, lines.len()), (Some(64), 1), "{lines:?}");
    assert_contains(
        &lines[0],
        &[
            "transactional id outbox-relay.test.",
            "is not allowed",
            "Allow Write",
        ],
    );
    // Without fencing the relay still publishes; the lease protects against all but a suspended leader.
    setting.run()?.wait_for(200, &["test: idle"]).await?;
    kafka.process.stop().await;
    Ok(())
}

/// `check` uses the transactional id of the source without fencing the leader.
#[tokio::test(flavor = "multi_thread")]
async fn check_does_not_fence_the_leader() -> Result<()> {
    let setting = Setting::new("undisturbed").await?;
    let relay = setting.run()?;
    relay.wait_for(200, &["test: idle"]).await?;
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("NOTE     admin_addr: a relay is running at "),
        "{text}"
    );
    assert!(
        text.contains("transactional id outbox-relay.test."),
        "{text}"
    );
    assert!(text.contains(" is allowed"), "{text}");
    let sql = "insert into outbox (topic, key, event_type, aggregate_version)
               values ('TOPIC', 'a', 'made', 2)";
    setting.administer(sql).await?;
    relay.wait_until_published(2).await?;
    let status = relay.status().await?;
    assert_eq!(status["restarts"]["fenced"], 0, "{status}");
    let records = Addresses::shared().read_topic(&setting.topic).await?;
    assert_eq!(records.len(), 2);
    Ok(())
}
