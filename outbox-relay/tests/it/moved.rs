//! A database URL that changes to another database while the relay runs.

use std::time::Duration;

use anyhow::{Context as _, Result};
use devstack::{WorkDir, eventually};
use outbox_relay::{
    Relay,
    config::{Config, SinkKind},
};

use crate::{
    harness::{Running, Session, Setup},
    truncation::{insert, rows},
};

/// A relay that reads its database URL from a file.
struct UrlFile {
    work_dir: WorkDir,
}

impl UrlFile {
    fn new(to: &Setup) -> Result<Self> {
        let url_file = Self {
            work_dir: WorkDir::new()?,
        };
        url_file.point_to(to)?;
        Ok(url_file)
    }

    /// Writes the URL of this database to the file.
    fn point_to(&self, setup: &Setup) -> Result<()> {
        self.work_dir.write("url", &setup.database.url)?;
        Ok(())
    }

    async fn start(&self, setup: &Setup) -> Result<Running> {
        let url = self.work_dir.path().join("url");
        let file = format!(
            "kafka.brokers = 'localhost:9092'\n[[source]]\nname = 'test'\ndatabase_url_file = '{}'\n",
            url.display()
        );
        let path = self.work_dir.write("outbox-relay.toml", &file)?;
        let mut config = setup.config()?;
        config.sources[0].database_url = Config::load(&path)?.sources.remove(0).database_url;
        Ok(Running::of(Relay::bind(config).await?))
    }
}

/// Writes the rows of two transactions to two partitions. One of them is truncated soon after publishing.
async fn write(setup: &Setup) -> Result<Session> {
    let session = Session::new(&setup.database).await?;
    for bucket in [0, 3] {
        let sql = insert(setup, bucket, 10);
        session.client.batch_execute(&sql).await?;
    }
    Ok(session)
}

/// The session with the lock and the checkpoint is older than the change of the file.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_read_from_the_database_of_the_checkpoint() -> Result<()> {
    let here = Setup::new("moved_here", SinkKind::Kafka).await?;
    let there = Setup::new("moved_there", SinkKind::Kafka).await?;
    let (session, _other) = (write(&here).await?, write(&there).await?);
    let lock = "pg_advisory_lock(hashtextextended('outbox-relay test', 0))";
    let leader = here.database.connect().await?;
    leader.batch_execute(&format!("select {lock}")).await?;
    let url_file = UrlFile::new(&here)?;
    let relay = url_file.start(&here).await?;
    relay.wait_for_state(200, "test: standby").await?;
    url_file.point_to(&there)?;
    drop(leader);
    assert_eq!(there.records(20).await?.len(), 20);
    let checkpoint =
        "select count(*) from relay_checkpoints where greatest(max_seq, window_seq) > 0";
    assert_eq!(session.client.count(checkpoint).await?, 0);
    relay.stop().await?;
    assert_eq!(here.records(0).await?, []);
    url_file.point_to(&here)?;
    let relay = url_file.start(&here).await?;
    assert_eq!(here.records(20).await?.len(), 20);
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_partition_of_another_database_is_truncated() -> Result<()> {
    let here = Setup::new("truncated_here", SinkKind::Kafka).await?;
    let there = Setup::new("truncated_there", SinkKind::Kafka).await?;
    let (session, other) = (write(&here).await?, write(&there).await?);
    let url_file = UrlFile::new(&here)?;
    let relay = url_file.start(&here).await?;
    session.client.wait_for(&rows(3), 0).await?;
    // As of another cluster, where these transactions completed long ago.
    let checkpoint = "insert into relay_checkpoints
            (source, epoch, snapshot, max_seq, heartbeat_at, resigned)
        values ('test', 1, '900000000:900000000:', 0, now(), true)";
    other.client.batch_execute(checkpoint).await?;
    url_file.point_to(&there)?;
    // Several truncation intervals.
    tokio::time::sleep(10 * Duration::from_millis(200)).await;
    assert_eq!(other.client.count(&rows(3)).await?, 10);
    relay.stop().await?;
    let checkpoint = "delete from relay_checkpoints";
    other.client.batch_execute(checkpoint).await?;
    let relay = url_file.start(&there).await?;
    assert_eq!(there.records(20).await?.len(), 20);
    other.client.wait_for(&rows(3), 0).await?;
    relay.stop().await
}

/// The former primary may live on, with the leader's sessions.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_follows_the_address_of_its_database() -> Result<()> {
    let here = Setup::new("address_here", SinkKind::Kafka).await?;
    let there = Setup::new("address_there", SinkKind::Kafka).await?;
    let url_file = UrlFile::new(&here)?;
    let relay = url_file.start(&here).await?;
    relay.wait_for_state(200, "test: idle").await?;
    let _other = write(&there).await?;
    url_file.point_to(&there)?;
    assert_eq!(there.records(20).await?.len(), 20);
    relay.wait_for_readiness(200).await?;
    let error = relay.status().await?["last_error"].to_string();
    assert!(error.contains("leads to another database"), "{error}");
    relay.stop().await
}

/// The leader's sessions work, but a failover would go unnoticed.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_verified_is_reported() -> Result<()> {
    let setup = Setup::new("address_unknown", SinkKind::Kafka).await?;
    let url_file = UrlFile::new(&setup)?;
    let relay = url_file.start(&setup).await?;
    relay.wait_for_state(200, "test: idle").await?;
    let elsewhere = "postgres://relay:secret@127.0.0.1:1/nowhere";
    url_file.work_dir.write("url", elsewhere)?;
    relay
        .wait_for_state(200, "failed to verify the address of the database")
        .await?;
    url_file.point_to(&setup)?;
    eventually("no warning", async || {
        let warnings = relay.status().await?["warnings"].clone();
        Ok((warnings == serde_json::json!([])).then_some(()))
    })
    .await?;
    relay.stop().await
}

/// The copy contains the checkpoint with the instance that distinguishes relays for the brokers.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_and_its_copy_are_published_side_by_side() -> Result<()> {
    let first = Setup::new("copied", SinkKind::Kafka).await?;
    let mut second = Setup::new("copy", SinkKind::Kafka).await?;
    let relay = first.start().await?;
    relay.wait_for_state(200, "test: idle").await?;
    relay.stop().await?;
    let (_, name) = first.database.url.rsplit_once('/').context("a name")?;
    let copy = format!("{name}_copy");
    let admin = second.database.connect().await?;
    // The sessions of a stopped relay take a moment to end.
    eventually("a copy", async || {
        let sql = format!("create database \"{copy}\" template \"{name}\"");
        Ok(admin.batch_execute(&sql).await.ok())
    })
    .await?;
    second.database.url = format!("{}_copy", first.database.url);
    let relays = [first.start().await?, second.start().await?];
    for _ in 0..3 {
        for setup in [&first, &second] {
            write(setup).await?;
        }
    }
    first.records(60).await?;
    second.records(60).await?;
    for relay in relays {
        let (_, text) = outbox_relay::ask(relay.admin_addr, "/status").await?;
        let [status]: [serde_json::Value; 1] = serde_json::from_str(&text)?;
        assert_eq!(status["fenced"], 0, "{text}");
        relay.stop().await?;
    }
    Ok(())
}
