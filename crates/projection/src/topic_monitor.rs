//! Monitors the topic beside the consumer: reads it at the consumer's next offsets.
//!
//! It uses a thread and connections of its own. A broker answers the requests of a connection in order, so a
//! request behind a fetch would wait as long as the fetch, and delay the next fetch.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    database,
    handle::Shared,
    offsets::StoredOffset,
    progress::{Found, Progress},
    topic::{QuietContext, TopicConsumer},
    topic_log::{LogChange, TopicLog},
};

/// The pause between two checks. Shorter until Kafka has confirmed every partition.
const INTERVAL: Duration = Duration::from_secs(2);
const UNSETTLED_INTERVAL: Duration = Duration::from_millis(100);
/// The timeout of each request.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A handle to the monitor's thread, which ends when this is dropped.
pub(crate) struct TopicMonitor {
    change: Arc<Mutex<Option<LogChange>>>,
    _stop_on_drop: DropGuard,
}

impl TopicMonitor {
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, KafkaError> {
        let config = &shared.config;
        let client = ClientConfig::new()
            .set("bootstrap.servers", &config.brokers)
            .set("client.id", format!("{} topic-monitor", config.name))
            // librdkafka requires a group. The monitor does not join it and commits nothing.
            .set("group.id", &config.name)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.timeout.ms", "5000")
            // A read returns a record or the end of the partition at once.
            .set("fetch.wait.max.ms", "10")
            .set("fetch.message.max.bytes", "1024")
            .set("queued.min.messages", "1")
            // The next read does not wait because the previous one has filled the queue.
            .set("fetch.queue.backoff.ms", "10")
            .create_with_context(QuietContext)?;
        let change = Arc::default();
        let stop = shared.shutdown.child_token();
        let mut check = TopicCheck {
            client,
            shared: Arc::clone(shared),
            change: Arc::clone(&change),
            log: TopicLog::new(&config.brokers, &config.topic),
            last_positions: BTreeMap::new(),
        };
        let stopped = stop.clone();
        thread::spawn(move || check.repeat_until(&stopped));
        Ok(Self {
            change,
            _stop_on_drop: stop.drop_guard(),
        })
    }

    /// Takes the difference between the topic's log and the one that was consumed.
    pub(crate) fn take_change(&self) -> Option<LogChange> {
        self.change.lock().take()
    }
}

/// The monitor's thread.
struct TopicCheck {
    client: TopicConsumer,
    shared: Arc<Shared>,
    change: Arc<Mutex<Option<LogChange>>>,
    log: TopicLog,
    /// The next offset of each partition at the last check.
    last_positions: BTreeMap<i32, i64>,
}

impl TopicCheck {
    fn repeat_until(&mut self, stopped: &CancellationToken) {
        while !stopped.is_cancelled() {
            let started = Instant::now();
            let result = self.check();
            let progress = &self.shared.progress;
            let interval = match &result {
                Ok(()) if is_settled(progress) => INTERVAL,
                _ => UNSETTLED_INTERVAL,
            };
            if !stopped.is_cancelled() {
                self.report(result.err(), started);
            }
            self.shared.runtime.block_on(async {
                let _ = tokio::time::timeout(interval, stopped.cancelled()).await;
            });
        }
    }

    fn report(&self, error: Option<CheckError>, started: Instant) {
        let progress = &self.shared.progress;
        if let Some(error) = &error
            && error.is_definite()
        {
            progress.report_error(error.to_string());
        }
        let waited = started.elapsed();
        tracing::trace!(?waited, ?error, "topic checked");
        progress.set_monitor_error(error.map(|error| error.to_string()));
    }

    fn check(&mut self) -> Result<(), CheckError> {
        let topic = &self.shared.config.topic;
        let metadata = self.client.fetch_metadata(Some(topic), TIMEOUT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let error = found.and_then(|found| found.error());
        if let Some(error @ RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) = error {
            return Err(KafkaError::MetadataFetch(error.into()).into());
        }
        if found.is_none_or(|found| found.partitions().is_empty()) {
            return Err(CheckError::Missing(topic.clone()));
        }
        let stored = self.shared.progress.stored_offsets();
        if stored.is_empty() {
            return self.confirm_idle();
        }
        if let Some(change) = self.find_change(&stored)? {
            *self.change.lock() = Some(change);
            return Ok(());
        }
        self.update_epochs(&stored)?;
        let positions: BTreeMap<i32, i64> =
            stored.iter().map(|(p, stored)| (*p, stored.next)).collect();
        let mut unchanged = positions.clone();
        unchanged.retain(|partition, next| {
            let last = self.last_positions.get(partition);
            last.is_none_or(|last| last == next)
        });
        self.last_positions = positions;
        self.confirm(&unchanged)
    }

    /// Compares the topic's log with the one that was consumed.
    fn find_change(
        &mut self,
        stored: &BTreeMap<i32, StoredOffset>,
    ) -> Result<Option<LogChange>, CheckError> {
        let Shared {
            config, runtime, ..
        } = &*self.shared;
        for (partition, StoredOffset { next, log }) in stored {
            let change = runtime.block_on(self.log.find_change(*partition, *log))?;
            if change.is_some() {
                return Ok(change);
            }
            let watermarks = self
                .client
                .fetch_watermarks(&config.topic, *partition, TIMEOUT);
            let (_, end) = watermarks?;
            if end < *next {
                return Ok(Some(LogChange::Shorter {
                    partition: *partition,
                    next: *next,
                    end,
                }));
            }
        }
        Ok(None)
    }

    /// Stores the epochs of the records before these offsets, for the next check and for the next start.
    fn update_epochs(&mut self, stored: &BTreeMap<i32, StoredOffset>) -> Result<(), CheckError> {
        let Shared {
            runtime, progress, ..
        } = &*self.shared;
        let mut epochs = BTreeMap::new();
        for (partition, StoredOffset { next, log }) in stored {
            if log.epoch.is_none_or(|epoch| epoch.offset < *next)
                && let Some(epoch) = runtime.block_on(self.log.find_epoch(*partition, *next))?
            {
                epochs.insert(*partition, epoch);
            }
        }
        let topic_id = stored.values().find_map(|stored| stored.log.topic_id);
        if epochs.is_empty() {
            return Ok(());
        }
        let offsets = self.shared.offsets();
        let storing = async {
            let mut conn = self
                .shared
                .pool
                .get()
                .await
                .map_err(|err| err.to_string())?;
            let storing = offsets.store_epochs(&mut conn, topic_id, &epochs);
            storing.await.map_err(|err| err.to_string())
        };
        let stored = runtime.block_on(database::limit(storing));
        match stored {
            Ok(()) => progress.set_epochs(&epochs),
            // The consumer reports that its database fails. The next check tries again.
            Err(error) => tracing::debug!(%error, "failed to store leader epochs"),
        }
        Ok(())
    }

    /// Reads at these offsets and stores the results.
    fn confirm(&self, offsets: &BTreeMap<i32, i64>) -> Result<(), CheckError> {
        let read = self.read(offsets)?;
        for (partition, next) in offsets {
            match read.get(partition) {
                Some(found) => self.shared.progress.confirm(*partition, *next, *found),
                None => {
                    return Err(CheckError::NoResponse {
                        partition: *partition,
                    });
                }
            }
        }
        Ok(())
    }

    /// Reads the end of a partition: other members of the group have all partitions.
    fn confirm_idle(&self) -> Result<(), CheckError> {
        let topic = &self.shared.config.topic;
        let (_, end) = self.client.fetch_watermarks(topic, 0, TIMEOUT)?;
        let read = self.read(&BTreeMap::from([(0, end)]))?;
        if read.is_empty() {
            return Err(CheckError::NoResponse { partition: 0 });
        }
        self.shared.progress.confirm_idle();
        Ok(())
    }

    /// Reads partitions at these offsets, and returns what was found within [`TIMEOUT`].
    fn read(&self, offsets: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, Found>, KafkaError> {
        let mut partitions = TopicPartitionList::new();
        for (partition, next) in offsets {
            let topic = &self.shared.config.topic;
            partitions.add_partition_offset(topic, *partition, Offset::Offset(*next))?;
        }
        self.client.assign(&partitions)?;
        let found = poll_each(&self.client, offsets.len());
        self.client.unassign()?;
        found
    }
}

/// Polls until this number of partitions have returned a record or their end.
fn poll_each(
    client: &BaseConsumer<QuietContext>,
    count: usize,
) -> Result<BTreeMap<i32, Found>, KafkaError> {
    let deadline = Instant::now() + TIMEOUT;
    let mut read = BTreeMap::new();
    while read.len() < count {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let (partition, found) = match client.poll(remaining) {
            Some(Ok(message)) => (message.partition(), Found::Record(message.offset())),
            Some(Err(KafkaError::PartitionEOF(partition))) => (partition, Found::End),
            Some(Err(err)) => return Err(err),
            None => break,
        };
        read.entry(partition).or_insert(found);
    }
    Ok(read)
}

/// Returns whether the next check can wait: every partition is confirmed, also after the last error.
fn is_settled(progress: &Progress) -> bool {
    let observations = progress.observations();
    let Some(evidence) = observations.oldest_evidence() else {
        return false;
    };
    let error = observations.error.as_ref();
    observations.joined_at.is_some() && error.is_none_or(|error| error.at < evidence)
}

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("topic {0} does not exist")]
    Missing(String),
    #[error("no response to a read of partition {partition} within {limit} s", limit = TIMEOUT.as_secs())]
    NoResponse { partition: i32 },
    #[error("{}", describe(.0))]
    Kafka(#[from] KafkaError),
    #[error("failed to describe the topic: {0}")]
    Log(#[from] kafka_client::Error),
}

impl CheckError {
    /// Returns whether the broker has answered with this error, which a retry does not resolve.
    fn is_definite(&self) -> bool {
        match self {
            Self::Missing(_) => true,
            Self::NoResponse { .. } => false,
            Self::Log(err) => !matches!(
                err,
                kafka_client::Error::Unavailable(_) | kafka_client::Error::Unauthenticated(_)
            ),
            Self::Kafka(err) => err.rdkafka_error_code().is_some_and(|code| {
                use RDKafkaErrorCode::*;
                matches!(
                    code,
                    UnknownTopic
                        | UnknownPartition
                        | UnknownTopicOrPartition
                        | TopicAuthorizationFailed
                        | GroupAuthorizationFailed
                        | ClusterAuthorizationFailed
                        | SaslAuthenticationFailed
                        | Authentication
                )
            }),
        }
    }
}

/// Describes an error of a request to Kafka.
fn describe(err: &KafkaError) -> String {
    use RDKafkaErrorCode::*;
    match err.rdkafka_error_code() {
        Some(AllBrokersDown | BrokerTransportFailure | Resolve | OperationTimedOut) => {
            "no connection to Kafka".to_owned()
        }
        _ => format!("failed to read from Kafka: {err}"),
    }
}
