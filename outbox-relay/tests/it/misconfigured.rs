//! What is told of the mistakes that are made most: by `check` in one line that names the way out, and
//! by `run`, which ends or is not ready and says why. One mistake a test, in a database whose role has
//! the privileges of the README and no others.

mod setting;

use std::sync::Arc;

use anyhow::Result;
use devstack::{Addresses, Home, Kafka};
use tokio::net::TcpListener;

use self::setting::{Parts, Setting};
use crate::{
    acl::{AUTHORIZER, Allowed, allow},
    rejections::set_limit,
};

/// A mistake, and what is said of it.
struct Mistake {
    /// What somebody did in the database; ROLE is the relay's role, TOPIC the topic.
    sql: &'static str,
    /// What is wrong in the configuration.
    change: fn(&mut Parts),
    /// What stands in the one line of `check` that says what is wrong.
    check: &'static [&'static str],
    /// What `run` says of it.
    run: Run,
}

enum Run {
    /// In `/readyz`, which is not content.
    NotReady(&'static [&'static str]),
    /// Before it ends with 64: the same as `check`.
    Ends,
    /// It publishes all the same.
    Publishes,
}

const MISTAKE: Mistake = Mistake {
    sql: "",
    change: |_| (),
    check: &[],
    run: Run::Ends,
};

/// A test for each of these mistakes.
macro_rules! mistakes {
    ($($test:ident: $mistake:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() -> Result<()> {
            prove(stringify!($test), $mistake).await
        })*
    };
}

mistakes! {
    wrong_password: Mistake {
        change: |parts| parts.password = "hunter2".into(),
        check: &["password authentication failed", "give name and password"],
        run: Run::NotReady(&["password authentication failed", "give name and password"]),
        ..MISTAKE
    };
    unknown_host: Mistake {
        change: |parts| parts.server = "nowhere.invalid:5432".into(),
        check: &["failed to connect to the database", "whether host and port in database_url are right"],
        run: Run::NotReady(&["failed to connect to the database", "whether host and port"]),
        ..MISTAKE
    };
    wrong_port: Mistake {
        change: |parts| parts.server = "127.0.0.1:1".into(),
        check: &["Connection refused", "whether host and port in database_url are right"],
        run: Run::NotReady(&["Connection refused", "whether host and port"]),
        ..MISTAKE
    };
    missing_database: Mistake {
        change: |parts| parts.database = "elsewhere".into(),
        check: &[r#"database "elsewhere" does not exist"#, "create the database"],
        run: Run::NotReady(&[r#"database "elsewhere" does not exist"#, "create the database"]),
        ..MISTAKE
    };
    missing_select: Mistake {
        sql: "revoke select on outbox from ROLE",
        check: &["may not select on outbox; grant select on outbox to "],
        run: Run::NotReady(&["permission denied for table outbox", "outbox-relay check"]),
        ..MISTAKE
    };
    missing_truncate: Mistake {
        sql: "revoke truncate on outbox_0, outbox_5 from ROLE",
        check: &["may not truncate on outbox_0, outbox_5; grant truncate on outbox_0, outbox_5 to "],
        run: Run::Publishes,
        ..MISTAKE
    };
    missing_update_of_the_checkpoint: Mistake {
        sql: "revoke update on relay_checkpoints from ROLE",
        check: &["may not update on relay_checkpoints; grant update on relay_checkpoints to "],
        run: Run::NotReady(&["permission denied for table relay_checkpoints", "outbox-relay check"]),
        ..MISTAKE
    };
    missing_table: Mistake {
        sql: "drop table outbox",
        check: &["there is no table outbox", "crates/outbox/migrations"],
        run: Run::NotReady(&[r#"relation "outbox" does not exist"#, "crates/outbox/migrations"]),
        ..MISTAKE
    };
    missing_column: Mistake {
        sql: "alter table outbox drop column traceparent",
        check: &["column traceparent of outbox is missing; alter table outbox add column traceparent text"],
        run: Run::NotReady(&[r#"column "traceparent" does not exist"#, "outbox-relay check"]),
        ..MISTAKE
    };
    missing_index: Mistake {
        sql: "drop index outbox_seq_idx",
        check: &["there is no index on seq in outbox_0, ", "create index on outbox (seq)"],
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
        check: &["outbox_seq gives each session 20 numbers", "alter sequence outbox_seq cache 1"],
        run: Run::Publishes,
        ..MISTAKE
    };
    a_writer_that_may_not_number_its_rows: Mistake {
        sql: "create role ROLE_writer; grant insert on outbox to ROLE_writer",
        check: &["_writer may insert into outbox, and may not use the sequence outbox_seq",
            "grant usage on sequence outbox_seq to "],
        run: Run::Publishes,
        ..MISTAKE
    };
    rows_that_are_hidden: Mistake {
        sql: "alter table outbox enable row level security",
        check: &["row-level security hides rows of outbox from ", " bypassrls"],
        run: Run::NotReady(&["row-level security", "outbox-relay check"]),
        ..MISTAKE
    };
    a_schema_that_may_not_be_used: Mistake {
        sql: "create schema app; create table app.events ()",
        change: |parts| parts.source += "table = 'app.events'\n",
        check: &["may not use the schema app; grant usage on schema app to "],
        run: Run::NotReady(&["permission denied for schema app", "outbox-relay check"]),
    };
    the_checkpoint_of_another_table: Mistake {
        sql: "insert into relay_checkpoints
                  (source, epoch, snapshot, max_seq, heartbeat_at, resigned, outbox)
              values ('test', 1, '3:3:', 0, now(), true, 'relay_parked'::regclass)",
        check: &["the checkpoint is of another table than outbox", "outbox-relay reset --source test"],
        run: Run::NotReady(&["the checkpoint belongs to another table than outbox", "outbox-relay reset --source test"]),
        ..MISTAKE
    };
    kafka_away: Mistake {
        change: |parts| parts.brokers = "127.0.0.1:1".into(),
        check: &["127.0.0.1:1: Connection refused", "whether the brokers run"],
        run: Run::NotReady(&["127.0.0.1:1: Connection refused", "whether the brokers run"]),
        ..MISTAKE
    };
    a_port_that_speaks_something_else_than_kafka: Mistake {
        change: |parts| parts.brokers = parts.server.clone(),
        check: &["Kafka doesn't take records", "a listener that speaks Kafka"],
        run: Run::NotReady(&["Kafka doesn't take records", "whether the brokers run"]),
        ..MISTAKE
    };
    missing_topic: Mistake {
        sql: "insert into outbox (topic, key, event_type, aggregate_version)
              values ('missing.v1', 'a', 'made', 1)",
        check: &["there is no topic missing.v1; create it"],
        run: Run::NotReady(&["missing.v1 is rejected: there is no such topic", "create the topic"]),
        ..MISTAKE
    };
    missing_dead_letter_topic: Mistake {
        change: |parts| parts.source += "dead_letter_topic = 'missing.dlq'\n",
        check: &["there is no topic missing.dlq; create it"],
        run: Run::NotReady(&["dead_letter_topic can't be used", "create it"]),
        ..MISTAKE
    };
    batches_larger_than_their_topic_takes: Mistake {
        sql: "insert into outbox (topic, key, event_type, aggregate_version)
              values ('TOPIC', 'a', 'made', 1)",
        change: |parts| parts.sink = "rdkafka",
        check: &["librdkafka fills batches up to 1000000 bytes", "set kafka.max_record_bytes to 20000"],
        run: Run::Publishes,
    };
    a_row_larger_than_its_topic_takes: Mistake {
        sql: "insert into outbox (topic, key, event_type, aggregate_version, payload)
              values ('TOPIC', 'a', 'made', 1, convert_to(repeat('x', 50000), 'UTF8'))",
        check: &["makes a record of about 50401 bytes", "raise max.message.bytes, which is 20000"],
        run: Run::NotReady(&["the limit is 20000", "by the topic's max.message.bytes", "raise the limit that is named"]),
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
    misspelt_setting: Mistake {
        change: |parts| parts.source += "databse_url = 'postgres://relay:hunter2@host/db'\n",
        check: &["line 9: unknown field `databse_url`, expected one of", "`database_url`"],
        ..MISTAKE
    };
    two_sources_of_one_name: Mistake {
        change: |parts| {
            parts.source += "[[source]]\nname = 'Test'\ndatabase_url = 'postgres://relay@host/db'\n";
        },
        check: &["Test: duplicate source name; give each source a unique name"],
        ..MISTAKE
    };
    missing_secrets_file: Mistake {
        change: |parts| parts.database_url_file = Some("/nowhere/secret".into()),
        check: &["/nowhere/secret: No such file or directory", "name a file that can be read"],
        ..MISTAKE
    };
    unreadable_secrets_file: Mistake {
        // A folder: to a test that runs as root every file can be read.
        change: |parts| parts.database_url_file = Some("/".into()),
        check: &["/: Is a directory", "name a file that can be read"],
        ..MISTAKE
    };
}

async fn prove(test: &str, mistake: Mistake) -> Result<()> {
    let mut setting = Setting::new(test).await?;
    set_limit(&setting.topic, 20_000).await?;
    setting.administer(mistake.sql).await?;
    (mistake.change)(&mut setting.parts);
    let (code, lines) = setting.complaints("check").await?;
    let [line] = lines.as_slice() else {
        panic!("not one line: {lines:#?}");
    };
    assert_eq!(code, Some(64), "{line}");
    assert_said(line, mistake.check);
    match mistake.run {
        Run::Ends => assert_eq!(setting.complaints("run").await?, (code, lines)),
        Run::Publishes => {
            setting.run()?.wait_for(200, &["test: idle"]).await?;
        }
        Run::NotReady(words) => {
            let mut relay = setting.run()?;
            relay.wait_for(503, words).await?;
            // Whatever it says again and again it says quietly.
            relay.wait_for_tries(3).await?;
            let log = relay.end()?;
            let tells =
                |line: &&str| line.contains("publishing begins anew") || line.contains(" halted");
            assert_eq!(log.lines().filter(tells).count(), 1, "{log}");
            assert!(
                !log.contains("panicked") && !log.contains("hunter2"),
                "{log}"
            );
        }
    }
    Ok(())
}

fn assert_said(text: &str, words: &[&str]) {
    for part in words {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_as_it_should_be_is_told_line_by_line() -> Result<()> {
    let setting = Setting::new("all_is_well").await?;
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "PASS     admin_addr: 127.0.0.1:".to_owned(),
        "PASS     test: Postgres 1".to_owned(),
        "PASS     test: rows are found by seq and by xid, in every partition".to_owned(),
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
    // It has changed nothing: no relay has led yet.
    let client = setting.database.connect().await?;
    assert_eq!(
        client
            .count("select count(*) from relay_checkpoints")
            .await?,
        0
    );
    Ok(())
}

/// What can't be looked at is not called fine, and keeps nothing else from being looked at.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_looked_at_is_told_with_the_reason() -> Result<()> {
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
        "UNKNOWN  test: could not check that the outbox is not filled by replication: ",
        "UNKNOWN  test: could not check that sequence outbox_seq is not behind the outbox; \
         grant select on sequence outbox_seq",
        "UNKNOWN  test: no topic was looked for, because the outbox has no rows",
        "PASS     test: rows are found by seq and by xid",
        "PASS     kafka: 1 broker",
        "passed, 0 failed, 3 could not be looked at",
    ];
    assert_said(&text, &lines);
    // Numbers that come from a function.
    let mut setting = setting;
    setting.parts.source += "table = 'numbered'\n";
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    lines = vec![
        "UNKNOWN  test: could not check the default of column seq of \"numbered\", which is next_number()",
        "UNKNOWN  test: could not check how column seq of \"numbered\" is numbered",
    ];
    assert_said(&text, &lines);
    // What lies behind what can't be reached.
    setting.parts.brokers = "127.0.0.1:1".into();
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(64), "{text}");
    assert_said(&text, &["UNKNOWN  test: its topics were not looked at"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_has_seen_enough_is_no_failure() -> Result<()> {
    let setting = Setting::new("seen_enough").await?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let (code, text) = setting.output_to(writer, &["check"]).await?;
    assert_eq!((code, text.as_str()), (Some(0), ""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_frees_a_key_that_is_not_parked_is_told() -> Result<()> {
    let setting = Setting::new("not_parked").await?;
    let retry = ["parked", "retry", "--source", "test", "--key", "none"];
    let (code, text) = setting.output(&retry).await?;
    assert_eq!(code, Some(70), "{text}");
    assert_said(&text, &["no key \"none\" of test is parked"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_a_relay_that_does_not_run_is_told_how_to_start_it() -> Result<()> {
    let setting = Setting::new("not_running").await?;
    let (code, text) = setting.output(&["status"]).await?;
    assert_eq!(code, Some(70), "{text}");
    assert_said(
        &text,
        &["no relay answers at 127.0.0.1:", "`outbox-relay run`"],
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_says_behind_whom() -> Result<()> {
    let setting = Setting::new("standby").await?;
    let client = setting.database.connect().await?;
    let lock =
        "select pg_backend_pid() from pg_advisory_lock(hashtextextended('outbox-relay test', 0))";
    let pid: i32 = client.query_one(lock, &[]).await?.get(0);
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    let holder = format!("Postgres session {pid}");
    assert!(
        text.contains(&format!("NOTE     test: led by {holder}")),
        "{text}"
    );
    let relay = setting.run()?;
    relay
        .wait_for(200, &["test: standby, behind ", &holder])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_in_use_ends_the_relay() -> Result<()> {
    let mut setting = Setting::new("admin_addr").await?;
    let other = TcpListener::bind("127.0.0.1:0").await?;
    setting.parts.admin_addr = other.local_addr()?;
    // It closes what it takes.
    tokio::spawn(async move { while other.accept().await.is_ok() {} });
    for command in ["check", "run"] {
        let (code, lines) = setting.complaints(command).await?;
        assert_eq!((code, lines.len()), (Some(64), 1), "{lines:?}");
        assert_said(
            &lines[0],
            &[
                "admin_addr: can't listen on 127.0.0.1:",
                "set another address",
            ],
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_allowed_is_told() -> Result<()> {
    let home = Arc::new(Home::new()?);
    let kafka = Kafka::start_with_settings(&home, &AUTHORIZER).await?;
    let mut setting = Setting::new("names").await?;
    kafka.create_topic(&setting.topic, 1, &[]).await?;
    setting.parts.brokers = kafka.brokers().to_owned();
    allow(kafka.brokers(), "User:*", &[Allowed::topic("*")]).await?;
    let names = Allowed::transactional_id("outbox-relay.");
    allow(kafka.brokers(), "User:somebody", &[names]).await?;
    let (code, lines) = setting.complaints("check").await?;
    assert_eq!((code, lines.len()), (Some(64), 1), "{lines:?}");
    assert_said(
        &lines[0],
        &[
            "transactional id outbox-relay.test.",
            "is not allowed",
            "allow Write",
        ],
    );
    // A lease alone is safe for all but a paused relay.
    setting.run()?.wait_for(200, &["test: idle"]).await?;
    kafka.process.stop().await;
    Ok(())
}

/// Whoever looks at a relay that leads does not take its name away from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_does_not_disturb_the_leader() -> Result<()> {
    let setting = Setting::new("undisturbed").await?;
    let relay = setting.run()?;
    relay.wait_for(200, &["test: idle"]).await?;
    let (code, text) = setting.output(&["check"]).await?;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("NOTE     admin_addr: a relay answers at "),
        "{text}"
    );
    assert!(text.contains("may be used"), "{text}");
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
