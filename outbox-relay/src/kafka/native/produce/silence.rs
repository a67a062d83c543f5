//! Tells a slow broker from a lost one.
//!
//! A slow broker may still append what it was sent, and a successor of the sink would send it again. So silence alone does not
//! fail the sink before the delivery timeout. A quota's throttle time is not silence. If another broker leads a partition, the
//! sink fails at once.

use std::{sync::Arc, time::Duration};

use kafka_client::{Cluster, Options};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::SentBatch;
use crate::{
    config::KafkaConfig,
    kafka::{SinkError, native::unavailable},
};

/// The silence after which other brokers are asked for the leader, and the interval between two questions.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// The last progress of a connection: a response, or bytes accepted by the socket. In the future while the broker throttles the
/// connection.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<Instant>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Progress {
    /// Records progress at this time.
    pub(super) fn record(&self, at: Instant) {
        let mut last = self.0.lock();
        *last = at.max(*last);
    }

    /// Records a response after which the broker does not read for `throttle_time`.
    pub(super) fn record_throttle(&self, throttle_time: Duration) {
        self.record(Instant::now() + throttle_time);
    }

    /// Waits until the broker reads again.
    pub(super) async fn wait_while_throttled(&self) {
        while self.last() > Instant::now() {
            sleep_until(self.last()).await;
        }
    }

    fn last(&self) -> Instant {
        *self.0.lock()
    }
}

/// Decides when the broker of a connection is lost.
pub(super) struct SilenceMonitor {
    progress: Progress,
    broker: i32,
    address: String,
    bootstrap: String,
    options: Options,
    delivery_timeout: Duration,
}

impl SilenceMonitor {
    pub(super) fn new(
        broker: i32,
        address: &str,
        kafka: &KafkaConfig,
        options: &Options,
        progress: &Progress,
    ) -> Self {
        Self {
            progress: progress.clone(),
            broker,
            address: address.to_owned(),
            bootstrap: kafka.brokers.clone(),
            options: options.clone(),
            delivery_timeout: kafka.delivery_timeout,
        }
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Waits until the connection made no progress for the delivery timeout, or another broker leads one of the partitions.
    /// Returns the error.
    pub(super) async fn wait_until_lost(&self, batches: &[SentBatch]) -> SinkError {
        tokio::select! {
            err = self.wait_for_timeout() => err,
            err = self.wait_for_new_leader(batches) => err,
        }
    }

    async fn wait_for_timeout(&self) -> SinkError {
        loop {
            let last = self.progress.last();
            sleep_until(last + self.delivery_timeout).await;
            if self.progress.last() == last {
                let seconds = self.delivery_timeout.as_secs_f64();
                let reason = format!("no response within kafka.delivery_timeout_ms ({seconds} s)");
                return unavailable(&self.address, reason);
            }
        }
    }

    async fn wait_for_new_leader(&self, batches: &[SentBatch]) -> SinkError {
        let mut cluster = None;
        let mut asked_at = Instant::now();
        loop {
            sleep_until(asked_at.max(self.progress.last()) + PROBE_INTERVAL).await;
            if self.progress.last().elapsed() < PROBE_INTERVAL {
                continue;
            }
            match self.find_new_leader(&mut cluster, batches).await {
                Ok(None) => {}
                Ok(Some(err)) => return err,
                Err(error) => {
                    tracing::debug!(broker = %self.address, %error, "failed to ask for the leader");
                }
            }
            asked_at = Instant::now();
        }
    }

    /// Asks any broker that responds who leads these partitions.
    async fn find_new_leader(
        &self,
        cluster: &mut Option<Cluster>,
        batches: &[SentBatch],
    ) -> Result<Option<SinkError>, kafka_client::Error> {
        let cluster = match cluster {
            Some(cluster) => cluster,
            None => {
                let connecting = Cluster::connect(&self.bootstrap, self.options.clone());
                cluster.insert(connecting.await?)
            }
        };
        let mut names: Vec<&str> = batches.iter().map(|batch| &*batch.topic).collect();
        names.dedup();
        let topics = cluster.topics(&names).await?;
        for SentBatch {
            topic, partition, ..
        } in batches
        {
            let metadata = (topics.get(&**topic))
                .and_then(|topic| topic.partitions.get(usize::try_from(*partition).ok()?));
            let leader = metadata.and_then(|metadata| metadata.leader);
            if let Some(leader) = leader.filter(|leader| *leader != self.broker) {
                let reason = format!("broker {leader} leads partition {topic}-{partition} now");
                return Ok(Some(unavailable(&self.address, reason)));
            }
        }
        Ok(None)
    }
}
