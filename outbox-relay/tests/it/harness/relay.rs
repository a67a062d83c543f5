//! A relay that runs in the test's process.

use std::time::Duration;

use anyhow::{Context as _, Result};
use devstack::{Addresses, Record, WAIT_TIMEOUT, eventually, read_topic};
use outbox_relay::{
    Relay,
    config::{
        Compression, Config, KafkaConfig, KafkaProperties, KafkaSecurity, Mapping, OnRejection,
        SinkKind, SourceConfig,
    },
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Database, Session};

/// A database, a topic, and a relay between them.
pub(crate) struct Setup {
    pub(crate) database: Database,
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) sink: SinkKind,
    pub(crate) compression: Compression,
    pub(crate) security: KafkaSecurity,
    pub(crate) properties: KafkaProperties,
    pub(crate) mapping: Mapping,
    pub(crate) on_rejection: OnRejection,
    pub(crate) dead_letter_topic: Option<String>,
    pub(crate) max_consecutive_rejections: u32,
    pub(crate) max_record_bytes: usize,
    pub(crate) delivery_timeout: Duration,
    pub(crate) max_in_flight_records: usize,
    /// Small, so that a test of a few hundred rows has many pages.
    pub(crate) max_page_rows: usize,
}

pub(crate) struct Running {
    pub(crate) admin_addr: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Setup {
    pub(crate) async fn new(test: &str, sink: SinkKind) -> Result<Self> {
        let topic = Addresses::unique_name(test);
        Addresses::shared().create_topic(&topic, 3).await?;
        Ok(Self {
            database: Database::new(test).await?,
            brokers: Addresses::shared().brokers().to_owned(),
            topic,
            sink,
            compression: Compression::None,
            security: KafkaSecurity::default(),
            properties: KafkaProperties::default(),
            mapping: Mapping::default(),
            on_rejection: OnRejection::Halt,
            dead_letter_topic: None,
            max_consecutive_rejections: 100,
            max_record_bytes: 100_000,
            delivery_timeout: Duration::from_secs(2),
            max_in_flight_records: 1_000,
            max_page_rows: 50,
        })
    }

    pub(crate) fn config(&self) -> Result<Config> {
        Ok(Config {
            admin_addr: "127.0.0.1:0".parse()?,
            kafka: KafkaConfig {
                brokers: self.brokers.clone(),
                sink: self.sink,
                compression: self.compression,
                delivery_timeout: self.delivery_timeout,
                max_in_flight_records: self.max_in_flight_records,
                max_in_flight_bytes: 8 << 20,
                max_record_bytes: self.max_record_bytes,
                security: self.security.clone(),
                properties: self.properties.clone(),
            },
            sources: vec![SourceConfig {
                name: "test".into(),
                database_url: self.database.url.as_str().into(),
                mapping: self.mapping.clone(),
                ce_source: "/test".into(),
                content_type: "application/json".into(),
                max_poll_interval: Duration::from_millis(20),
                max_page_rows: self.max_page_rows,
                on_rejection: self.on_rejection,
                retention: Duration::ZERO,
                truncation_interval: Duration::from_millis(200),
                dead_letter_topic: self.dead_letter_topic.clone(),
                max_consecutive_rejections: self.max_consecutive_rejections,
            }],
        })
    }

    pub(crate) async fn start(&self) -> Result<Running> {
        Ok(Running::of(Relay::bind(self.config()?).await?))
    }

    /// Changes `key` and enqueues the event in one transaction.
    pub(crate) async fn write(&self, session: &Session, key: &str) -> Result<()> {
        session.client.batch_execute("begin").await?;
        let version = session.change(key).await?;
        session.enqueue(&self.topic, key, version).await?;
        Ok(session.client.batch_execute("commit").await?)
    }

    /// Waits for at least this many records in the topic and returns all of them.
    pub(crate) async fn records(&self, at_least: usize) -> Result<Vec<Record>> {
        let enough = async || {
            let records = read_topic(&self.brokers, &self.topic).await?;
            Ok((records.len() >= at_least).then_some(records))
        };
        eventually(&format!("{at_least} records"), enough).await
    }
}

impl Running {
    pub(crate) fn of(relay: Relay) -> Self {
        let (admin_addr, shutdown) = (relay.admin_addr(), CancellationToken::new());
        let task = tokio::spawn(relay.run(shutdown.clone()));
        Self {
            admin_addr,
            shutdown,
            task,
        }
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        tokio::time::timeout(WAIT_TIMEOUT, self.task)
            .await
            .context("the relay did not shut down")??
    }

    /// Returns the status of the source.
    pub(crate) async fn status(&self) -> Result<serde_json::Value> {
        let (_, text) = outbox_relay::ask(self.admin_addr, "/status").await?;
        let [status] = serde_json::from_str::<[serde_json::Value; 1]>(&text)?;
        Ok(status)
    }

    /// Waits until the source has restarted this many times.
    pub(crate) async fn wait_for_restarts(&self, restarts: u64) -> Result<()> {
        eventually(&format!("{restarts} restarts"), async || {
            let status = self.status().await?;
            let counts = status["restarts"].as_object().context("an object")?;
            let count: u64 = counts.values().filter_map(serde_json::Value::as_u64).sum();
            Ok((count >= restarts).then_some(()))
        })
        .await
    }

    /// Waits until `/readyz` returns `code`, and returns its text.
    pub(crate) async fn wait_for_readiness(&self, code: u16) -> Result<String> {
        self.wait_for_state(code, "").await
    }

    /// Waits until `/readyz` returns `code` and a text with `words`, and returns the text.
    pub(crate) async fn wait_for_state(&self, code: u16, words: &str) -> Result<String> {
        let mut last = String::new();
        let matches = async || {
            let Ok((found, text)) = outbox_relay::ask(self.admin_addr, "/readyz").await else {
                return Ok(None);
            };
            last = format!("{found} {text}");
            Ok((found == code && text.contains(words)).then_some(text))
        };
        let waited = eventually(&format!("{code} {words}"), matches).await;
        let text = waited.with_context(|| format!("/readyz returns: {last}"))?;
        Ok(text)
    }
}
