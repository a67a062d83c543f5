//! Slow brokers are waited for. Nothing is published again.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use devstack::{Fault, Kafka, WorkDir, eventually, read_topic};
use outbox_relay::config::SinkKind;
use serde_json::Value;

use crate::{
    for_each_sink,
    harness::{Running, Setup},
};

for_each_sink! {
    a_quota_of_bytes_delays_records_and_repeats_none,
    a_quota_of_requests_delays_records_and_repeats_none,
    a_suspended_broker_delays_records_and_repeats_none,
    a_slow_link_delays_records_and_repeats_none,
}

const CLIENT_ID: &str = "outbox-relay";
const RECORD_BYTES: usize = 1_000;
/// Shorter than each test takes in total: only silence counts. `rdkafka` counts the time in its queue as well.
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);

/// A relay with a broker of its own.
struct Patience {
    kafka: Kafka,
    work_dir: Arc<WorkDir>,
    setup: Setup,
    rows: usize,
}

impl Patience {
    async fn new(test: &str, sink: SinkKind) -> Result<Self> {
        let work_dir = Arc::new(WorkDir::new()?);
        // A suspended broker keeps its partitions: the controller in the same process would take them away after nine seconds.
        let settings = ["broker.session.timeout.ms=60000"];
        let kafka = Kafka::start_with_settings(&work_dir, &settings).await?;
        Self::with_broker(test, sink, work_dir, kafka).await
    }

    async fn with_broker(
        test: &str,
        sink: SinkKind,
        work_dir: Arc<WorkDir>,
        kafka: Kafka,
    ) -> Result<Self> {
        let mut setup = Setup::new(test, sink).await?;
        setup.brokers = kafka.brokers().to_owned();
        setup.delivery_timeout = match sink {
            SinkKind::Kafka => SHORT_TIMEOUT,
            SinkKind::RdKafka => Duration::from_secs(30),
        };
        setup.max_page_rows = 20_000;
        setup.max_in_flight_records = 20_000;
        kafka.create_topic(&setup.topic, 3, &[]).await?;
        Ok(Self {
            kafka,
            work_dir,
            setup,
            rows: 0,
        })
    }

    /// Writes rows with different keys in one transaction.
    async fn write(&mut self, count: usize, payload_bytes: usize) -> Result<()> {
        let sql = format!(
            "insert into outbox (topic, key, event_type, aggregate_version, payload)
             select '{}', n::text, 'changed', 1, convert_to(repeat('x', {payload_bytes}), 'UTF8')
             from generate_series({}, {}) n",
            self.setup.topic,
            self.rows + 1,
            self.rows + count,
        );
        self.rows += count;
        let session = self.setup.database.connect().await?;
        Ok(session.batch_execute(&sql).await?)
    }

    /// Waits until each row is published.
    async fn wait_until_published(&self, running: &Running) -> Result<()> {
        eventually("every row is published", async || {
            let published = running.status().await?["published"].clone();
            Ok((published == self.rows).then_some(()))
        })
        .await
    }

    /// Stops the relay. Asserts that each row is in the topic exactly once and that the source never restarted.
    async fn end(self, running: Running) -> Result<()> {
        let status = running.status().await?;
        let restarts = status["restarts"].as_object();
        let restarted = restarts.into_iter().flat_map(|reasons| reasons.values());
        assert!(restarted.into_iter().all(|count| *count == 0), "{status:#}");
        running.stop().await?;
        let records = read_topic(self.kafka.brokers(), &self.setup.topic).await?;
        assert_eq!(records.len(), self.rows);
        let mut keys: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), self.rows);
        self.kafka.process.stop().await;
        Ok(())
    }
}

async fn a_quota_of_bytes_delays_records_and_repeats_none(sink: SinkKind) -> Result<()> {
    let mut patience = Patience::new("byte_quota", sink).await?;
    let quota = "producer_byte_rate=100000";
    patience
        .kafka
        .set_quota(&patience.work_dir, CLIENT_ID, quota)
        .await?;
    patience.write(3_000, RECORD_BYTES).await?;
    let running = patience.setup.start().await?;
    let warning = eventually("the throttling is reported", async || {
        Ok(running.status().await?["warnings"].get(0).cloned())
    })
    .await?;
    assert_eq!(warning["reason"], "throttled");
    let text = running.wait_for_readiness(200).await?;
    assert!(text.contains("producer_byte_rate"), "{text}");
    patience.wait_until_published(&running).await?;
    let throttled_s = running.status().await?["throttled_s"].as_f64();
    assert!(throttled_s > Some(1.0), "{throttled_s:?}");
    patience.end(running).await
}

async fn a_quota_of_requests_delays_records_and_repeats_none(sink: SinkKind) -> Result<()> {
    let mut patience = Patience::new("request_quota", sink).await?;
    let quota = "request_percentage=0.1";
    patience
        .kafka
        .set_quota(&patience.work_dir, CLIENT_ID, quota)
        .await?;
    // Small pages need many requests.
    patience.setup.max_page_rows = 100;
    patience.write(3_000, RECORD_BYTES).await?;
    let running = patience.setup.start().await?;
    patience.wait_until_published(&running).await?;
    eventually("the throttling is reported", async || {
        let throttled_s = running.status().await?["throttled_s"].as_f64();
        Ok((throttled_s > Some(0.0)).then_some(()))
    })
    .await?;
    patience.end(running).await
}

async fn a_suspended_broker_delays_records_and_repeats_none(sink: SinkKind) -> Result<()> {
    let mut patience = Patience::new("suspended", sink).await?;
    patience.setup.delivery_timeout = Duration::from_secs(30);
    patience.write(100, RECORD_BYTES).await?;
    let running = patience.setup.start().await?;
    patience.wait_until_published(&running).await?;
    patience.kafka.process.suspend();
    patience.write(3_000, RECORD_BYTES).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let status: Value = running.status().await?;
    assert!(status["published"] == 100, "{status:#}");
    patience.kafka.process.resume();
    patience.wait_until_published(&running).await?;
    patience.end(running).await
}

/// The requests in flight take longer than the delivery timeout together, each of them less.
async fn a_slow_link_delays_records_and_repeats_none(sink: SinkKind) -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let (kafka, proxy) = Kafka::start_behind_proxy(&work_dir, &[]).await?;
    let mut patience = Patience::with_broker("slow_link", sink, work_dir, kafka).await?;
    patience.setup.brokers = proxy.address();
    patience.setup.max_record_bytes = 1_000_000;
    proxy
        .set(Fault::Limit {
            bytes_per_s: 1_000_000,
        })
        .await?;
    patience.write(100, 100_000).await?;
    let running = patience.setup.start().await?;
    patience.wait_until_published(&running).await?;
    patience.end(running).await
}
