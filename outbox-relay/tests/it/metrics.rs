//! `/metrics`, `/status`, the web page and the `status` command.

use std::{collections::HashMap, process::Command};

use anyhow::{Context as _, Result};
use devstack::{WorkDir, eventually};
use outbox_relay::config::{OnRejection, SinkKind};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    for_each_sink,
    harness::{Running, Session, Setup},
};

for_each_sink! {
    every_record_is_counted_with_its_latency,
    rejected_records_are_counted_by_outcome,
}

/// Returns the metrics of the only source, by name and labels other than `source`.
async fn metrics(relay: &Running) -> Result<HashMap<String, f64>> {
    let (_, text) = outbox_relay::ask(relay.admin_addr, "/metrics").await?;
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').context("a value")?;
        let name = name.trim_start_matches("outbox_relay_");
        let name = name.replace(r#"{source="test"}"#, "");
        let name = name.replace(r#"{source="test","#, "{");
        Ok((name, value.parse()?))
    };
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(sample).collect()
}

/// Waits until the metrics have these values.
async fn wait_for(relay: &Running, wanted: &[(&str, f64)]) -> Result<HashMap<String, f64>> {
    let mut found = HashMap::new();
    let waited = eventually(&format!("{wanted:?}"), async || {
        found = metrics(relay).await?;
        let matches = (wanted.iter()).all(|(name, value)| found.get(*name) == Some(value));
        Ok(matches.then_some(()))
    })
    .await;
    waited.with_context(|| format!("the metrics are: {found:?}"))?;
    Ok(found)
}

async fn status(relay: &Running) -> Result<Value> {
    let (_, text) = outbox_relay::ask(relay.admin_addr, "/status").await?;
    let [status]: [Value; 1] = serde_json::from_str(&text)?;
    Ok(status)
}

/// Requests the page. Returns the head of the response and the page.
async fn fetch_page(relay: &Running) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(relay.admin_addr).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    let (head, page) = response.split_once("\r\n\r\n").context("a response")?;
    Ok((head.to_owned(), page.to_owned()))
}

async fn every_record_is_counted_with_its_latency(sink: SinkKind) -> Result<()> {
    let setup = Setup::new("metrics", sink).await?;
    let session = Session::new(&setup.database).await?;
    // More rows than a page measures completely, and a single one.
    let many = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, created_at)
         select '{}', 'a', 'made', n, now() - interval '90 s' from generate_series(1, 777) as n",
        setup.topic
    );
    session.client.batch_execute(&many).await?;
    let relay = setup.start().await?;
    setup.records(777).await?;
    setup.write(&session, "b").await?;
    let found = wait_for(
        &relay,
        &[
            ("shipped_records_total", 778.0),
            ("commit_to_ack_seconds_count", 778.0),
            ("pending_rows", 0.0),
            ("pending_rows_is_estimate", 0.0),
            ("oldest_pending_age_seconds", 0.0),
            ("in_flight_records", 0.0),
            ("leader", 1.0),
            ("ready", 1.0),
            ("epoch", 1.0),
            (r#"restarts_total{reason="kafka"}"#, 0.0),
        ],
    )
    .await?;
    assert!(found["commit_to_ack_seconds_sum"] >= 777.0 * 90.0);
    let quick = found[r#"commit_to_ack_seconds_bucket{le="60"}"#];
    let all = found[r#"commit_to_ack_seconds_bucket{le="+Inf"}"#];
    assert_eq!((quick, all), (1.0, 778.0));
    assert!(found["page_read_seconds_count"] >= 1.0 && found["outbox_bytes"] > 0.0);
    assert!(found.contains_key("checkpoint_age_seconds"));
    let status = status(&relay).await?;
    assert_eq!(status["published"], 778);
    assert_eq!(status["commit_to_ack"]["count"], 778);
    assert_eq!(status["pending_rows"], 0);
    assert_eq!(status["role"], "leader");
    relay.stop().await
}

async fn rejected_records_are_counted_by_outcome(sink: SinkKind) -> Result<()> {
    let mut setup = Setup::new("outcomes", sink).await?;
    setup.on_rejection = OnRejection::ParkKey;
    let session = Session::new(&setup.database).await?;
    let large = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, payload)
         select '{}', 'key-' || n, 'made', 1, convert_to(repeat('x', 200000), 'UTF8')
         from generate_series(1, 2) as n",
        setup.topic
    );
    session.client.batch_execute(&large).await?;
    let relay = setup.start().await?;
    wait_for(
        &relay,
        &[
            (r#"refused_records_total{outcome="parked"}"#, 2.0),
            ("parked_keys", 2.0),
            (r#"state{state="parked"}"#, 1.0),
            ("ready", 1.0),
        ],
    )
    .await?;
    relay.stop().await?;
    setup.on_rejection = OnRejection::DeadLetter;
    session
        .client
        .batch_execute(&large.replace("key-", "other-"))
        .await?;
    let relay = setup.start().await?;
    let wanted = [
        (r#"refused_records_total{outcome="dead_lettered"}"#, 2.0),
        ("dead_letters", 2.0),
    ];
    wait_for(&relay, &wanted).await?;
    relay.stop().await?;
    setup.on_rejection = OnRejection::Halt;
    session
        .client
        .batch_execute(&large.replace("key-", "third-"))
        .await?;
    let relay = setup.start().await?;
    let halted = wait_for(
        &relay,
        &[
            (r#"refused_records_total{outcome="halted"}"#, 1.0),
            (r#"state{state="halted"}"#, 1.0),
            (r#"restarts_total{reason="rejected"}"#, 3.0),
            ("pending_rows", 2.0),
            ("ready", 0.0),
        ],
    )
    .await?;
    assert!(halted["oldest_pending_age_seconds"] > 0.0);
    relay.stop().await
}

/// A large backlog is estimated and marked as an estimate.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_reported_while_nothing_is_published() -> Result<()> {
    let mut setup = Setup::new("backlog", SinkKind::Kafka).await?;
    // No broker listens there.
    setup.brokers = "127.0.0.1:1".into();
    let session = Session::new(&setup.database).await?;
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, created_at)
         select '{}', 'a', 'made', n, now() - interval '1 hour' from generate_series(1, 5000) as n",
        setup.topic
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    let found = wait_for(
        &relay,
        &[
            ("pending_rows", 5_000.0),
            ("pending_rows_is_estimate", 1.0),
            (r#"state{state="stalled"}"#, 1.0),
        ],
    )
    .await?;
    assert!((3_600.0..7_200.0).contains(&found["oldest_pending_age_seconds"]));
    relay.stop().await
}

/// Rows of a transaction that commits late are behind the checkpoint and nevertheless pending.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_late_transactions_are_pending_until_they_are_published() -> Result<()> {
    let setup = Setup::new("late", SinkKind::Kafka).await?;
    let (slow, quick) = (
        Session::new(&setup.database).await?,
        Session::new(&setup.database).await?,
    );
    slow.client.batch_execute("begin").await?;
    slow.enqueue(&setup.topic, "slow", 1).await?;
    setup.write(&quick, "quick").await?;
    let relay = setup.start().await?;
    wait_for(
        &relay,
        &[("shipped_records_total", 1.0), ("pending_rows", 0.0)],
    )
    .await?;
    relay.stop().await?;
    slow.client.batch_execute("commit").await?;
    let mut unavailable = setup;
    let brokers = std::mem::replace(&mut unavailable.brokers, "127.0.0.1:1".into());
    let relay = unavailable.start().await?;
    wait_for(
        &relay,
        &[("pending_rows", 1.0), ("pending_rows_is_estimate", 0.0)],
    )
    .await?;
    relay.stop().await?;
    unavailable.brokers = brokers;
    let relay = unavailable.start().await?;
    wait_for(
        &relay,
        &[("shipped_records_total", 1.0), ("pending_rows", 0.0)],
    )
    .await?;
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_partitions_are_counted() -> Result<()> {
    let setup = Setup::new("truncated", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    // New rows go to bucket 0 in these tests.
    let sql = format!(
        "insert into outbox (topic, key, event_type, aggregate_version, bucket)
         select '{}', 'a', 'made', n, 3 from generate_series(1, 10) as n",
        setup.topic
    );
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    let wanted = [
        ("truncated_partitions_total", 1.0),
        ("shipped_records_total", 10.0),
    ];
    wait_for(&relay, &wanted).await?;
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_allows_only_its_own_script_and_style() -> Result<()> {
    let setup = Setup::new("page", SinkKind::Kafka).await?;
    let relay = setup.start().await?;
    let (head, page) = fetch_page(&relay).await?;
    let (_, nonce) = head.split_once("script-src 'nonce-").context("a policy")?;
    let (nonce, _) = nonce.split_once('\'').context("a nonce")?;
    assert!(head.contains("default-src 'none'"), "{head}");
    for tag in ["script", "style"] {
        assert_eq!(page.matches(&format!("<{tag}")).count(), 1);
        assert!(
            page.contains(&format!("<{tag} nonce=\"{nonce}\">")),
            "{page}"
        );
    }
    let (other, _) = fetch_page(&relay).await?;
    assert!(!other.contains(nonce), "the same nonce twice");
    // The page loads nothing.
    for external in ["http:", "https:", "//cdn", "@import", "url("] {
        let found = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!found.contains(external), "{external}");
    }
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn status_prints_json_when_its_output_is_not_a_terminal() -> Result<()> {
    let setup = Setup::new("status", SinkKind::Kafka).await?;
    let relay = setup.start().await?;
    relay.wait_for_readiness(200).await?;
    let work_dir = WorkDir::new()?;
    let config = work_dir.write("outbox-relay.toml", "")?;
    for args in [&["status"][..], &["status", "--json"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        let address = relay.admin_addr.to_string();
        command.arg("--config").arg(&config).args(args);
        command.env("OUTBOX_RELAY_ADMIN_ADDR", address);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        assert!(output.status.success(), "{output:?}");
        let [status]: [Value; 1] = serde_json::from_slice(&output.stdout)?;
        assert_eq!(status["source"], "test");
        // Also present when null: other programs rely on these fields.
        for key in [
            "role",
            "epoch",
            "published",
            "in_flight",
            "fenced",
            "parked_keys",
            "error",
        ] {
            assert!(status.get(key).is_some(), "{key} in {status}");
        }
    }
    relay.stop().await
}
