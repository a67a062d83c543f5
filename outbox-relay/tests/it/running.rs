//! A relay that publishes the rows of concurrent writers.

use std::time::Duration;

use anyhow::{Context as _, Result};
use devstack::{Audit, Record, WAIT_TIMEOUT, WorkDir, eventually, read_topic};
use outbox_relay::{
    Relay,
    config::{Config, SinkKind},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{Database, Writers};

/// The configuration of an event topic.
pub(crate) const COMPACTED: (&str, &str) = ("cleanup.policy", "compact");
pub(crate) const MAX_IN_FLIGHT_RECORDS: usize = 500;

/// A database with writers, and a relay that publishes their rows.
pub(crate) struct Running {
    pub(crate) database: Database,
    pub(crate) topic: String,
    pub(crate) sink: SinkKind,
    brokers: String,
    writers: Writers,
    admin_addr: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<()>>,
}

/// The status of the source.
#[derive(Debug, serde::Deserialize)]
struct Status {
    published: usize,
    in_flight: usize,
}

impl Running {
    pub(crate) async fn start(
        work_dir: &WorkDir,
        brokers: &str,
        topic: &str,
        sink: SinkKind,
        delivery_timeout: Duration,
    ) -> Result<Self> {
        let database = Database::new("brokers").await?;
        let config = format!(
            "admin_addr = '127.0.0.1:0'\n[kafka]\nbrokers = {brokers:?}\nsink = {:?}\n\
             max_in_flight_records = {MAX_IN_FLIGHT_RECORDS}\ndelivery_timeout_ms = {}\n\
             [[source]]\nname = 'test'\ndatabase_url = {:?}\n",
            match sink {
                SinkKind::Kafka => "kafka",
                SinkKind::RdKafka => "rdkafka",
            },
            delivery_timeout.as_millis(),
            database.url,
        );
        let config = Config::load(&work_dir.write("outbox-relay.toml", &config)?)?;
        let relay = Relay::bind(config).await?;
        let (admin_addr, shutdown) = (relay.admin_addr(), CancellationToken::new());
        let task = tokio::spawn(relay.run(shutdown.clone()));
        Ok(Self {
            writers: Writers::start(&database, topic).await?,
            database,
            topic: topic.to_owned(),
            brokers: brokers.to_owned(),
            sink,
            admin_addr,
            shutdown,
            task,
        })
    }

    async fn status(&self) -> Result<Status> {
        let (_, text) = outbox_relay::ask(self.admin_addr, "/status").await?;
        let [status] = serde_json::from_str(&text)?;
        Ok(status)
    }

    /// Waits until this many more records are acknowledged.
    pub(crate) async fn publish(&self, more: usize) -> Result<()> {
        let wanted = self.status().await?.published + more;
        eventually(&format!("{wanted} records acknowledged"), async || {
            Ok((self.status().await?.published >= wanted).then_some(()))
        })
        .await
    }

    /// Waits until `/readyz` returns `code`, and returns its text. Asserts the bound of records in flight meanwhile.
    pub(crate) async fn wait_for_readiness(&self, code: u16) -> Result<String> {
        eventually(&format!("{code}"), async || {
            let status = self.status().await?;
            assert!(status.in_flight <= MAX_IN_FLIGHT_RECORDS, "{status:?}");
            let (found, text) = outbox_relay::ask(self.admin_addr, "/readyz").await?;
            Ok((found == code).then_some(text))
        })
        .await
    }

    /// Creates this many aggregates with an event each in one transaction.
    pub(crate) async fn write_at_once(&self, count: usize, prefix: &str) -> Result<()> {
        let sql = format!(
            "with made as (
                 insert into aggregates
                 select '{prefix}-' || n, 1 from generate_series(1, {count}) n
                 returning key, version)
             insert into outbox (topic, key, event_type, aggregate_version, payload)
             select '{}', key, 'changed', version, '{{}}' from made",
            self.topic
        );
        Ok(self.database.connect().await?.batch_execute(&sql).await?)
    }

    /// Returns all records of the topic. Returns `None` if a broker has just lost the leadership of a partition.
    pub(crate) async fn records(&self) -> Option<Vec<Record>> {
        read_topic(&self.brokers, &self.topic).await.ok()
    }

    /// Stops the writers, waits until all rows are in the topic, and stops the relay. Returns the audit of the topic.
    pub(crate) async fn end(mut self) -> Result<Audit> {
        self.writers.end().await?;
        let newest = self.database.newest().await?;
        let audit = eventually("all rows in the topic", async || {
            let audit = (self.records().await).map(|records| Audit::new(&newest, &records));
            Ok(audit.filter(|audit| audit.lost == 0))
        })
        .await?;
        self.stop().await?;
        Ok(audit)
    }

    /// Stops the writers.
    pub(crate) async fn end_writers(&mut self) -> Result<()> {
        self.writers.end().await
    }

    /// Stops the relay.
    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(WAIT_TIMEOUT, self.task)
            .await
            .context("the relay did not shut down")??
    }
}
