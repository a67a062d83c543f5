//! Librdkafka's rebalance callbacks: they assign partitions from the stored offsets.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaRespErr,
};

use crate::{
    database,
    handle::{MAX_BACKOFF, Shared, backoff},
    offsets::StoredOffset,
    progress::Activity,
    topic_log::{LogChange, TopicLog},
};

/// The timeout of a request for a partition's first and last offset.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(2);

/// Assigns partitions to this consumer.
pub(crate) struct Assignment {
    shared: Arc<Shared>,
    log: Mutex<TopicLog>,
    /// The reason why the stored offsets are not used.
    change: Mutex<Option<LogChange>>,
    has_failed: AtomicBool,
}

impl Assignment {
    /// Creates a consumer that subscribes to the topic and has its partitions assigned by this type.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub(crate) fn create_consumer(shared: &Arc<Shared>) -> Result<BaseConsumer<Self>, KafkaError> {
        let consumer_config = &shared.config;
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &consumer_config.brokers)
            .set("group.id", &consumer_config.name)
            .set("client.id", &consumer_config.name)
            .set("partition.assignment.strategy", "cooperative-sticky")
            // Offsets come from the database. One that is out of range must be an error.
            .set("auto.offset.reset", "error")
            .set("enable.auto.offset.store", "false")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("session.timeout.ms", "10000")
            .set("reconnect.backoff.max.ms", "1000")
            // A silent connection is replaced after this time.
            .set("socket.timeout.ms", "10000")
            .set("fetch.error.backoff.ms", "100")
            // Added partitions are consumed within this time.
            .set("topic.metadata.refresh.interval.ms", "10000")
            // Bounds the memory of fetched records.
            .set("queued.max.messages.kbytes", "16384");
        if let Some(instance_id) = &consumer_config.instance_id {
            config.set("group.instance.id", instance_id);
        }
        let context = Self {
            shared: Arc::clone(shared),
            log: Mutex::new(TopicLog::new(
                &consumer_config.brokers,
                &consumer_config.topic,
            )),
            change: Mutex::default(),
            has_failed: AtomicBool::new(false),
        };
        let consumer: BaseConsumer<Self> = config.create_with_context(context)?;
        consumer.subscribe(&[&consumer_config.topic])?;
        Ok(consumer)
    }

    /// Returns whether an assignment failed. Only a new consumer recovers from that.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// Takes the difference between the topic's log and the one that was consumed. Nothing is assigned then.
    pub(crate) fn take_change(&self) -> Option<LogChange> {
        self.change.lock().take()
    }

    /// Returns whether a record lies before those that were applied: its topic was recreated.
    pub(crate) fn has_regressed(&self, message: &BorrowedMessage<'_>) -> bool {
        let observations = self.shared.progress.observations();
        let position = observations.partitions.get(&message.partition());
        position.is_some_and(|at| at.advanced_at.is_some() && message.offset() < at.next)
    }

    /// Loads the stored offset of a partition. Retries until it succeeds; returns `None` at a shutdown, and if the log is
    /// another one.
    fn load_offset(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Option<StoredOffset> {
        let shared = &self.shared;
        let mut backoff = backoff();
        while !shared.shutdown.is_cancelled() {
            match self.try_load_offset(consumer, partition) {
                Ok((stored, None)) => return Some(stored),
                Ok((_, Some(change))) => {
                    *self.change.lock() = Some(change);
                    return None;
                }
                Err(reason) => shared
                    .progress
                    .report_error(format!("failed to load offsets: {reason}")),
            }
            shared.pause(backoff.next().unwrap_or(MAX_BACKOFF));
        }
        None
    }

    fn try_load_offset(
        &self,
        consumer: &BaseConsumer<Self>,
        partition: i32,
    ) -> Result<(StoredOffset, Option<LogChange>), String> {
        let Shared {
            config,
            progress,
            runtime,
            ..
        } = &*self.shared;
        let from_kafka = |err: &dyn fmt::Display| {
            format!("failed to get the offsets of partition {partition} from Kafka: {err}")
        };
        let mut log = self.log.lock();
        progress.begin(Activity::RequestingOffsets);
        let (earliest, _) = consumer
            .fetch_watermarks(&config.topic, partition, WATERMARK_TIMEOUT)
            .map_err(|err| from_kafka(&err))?;
        let topic_id = runtime
            .block_on(log.topic_id())
            .map_err(|err| from_kafka(&err))?;
        progress.begin(Activity::LoadingOffsets);
        let offsets = self.shared.offsets();
        let loading = database::run(&self.shared, async |conn| {
            let loading = offsets.load_or_create(conn, partition, earliest, topic_id);
            loading.await
        });
        let stored = runtime.block_on(loading).map_err(|err| err.to_string())?;
        progress.begin(Activity::RequestingOffsets);
        let change = runtime
            .block_on(log.find_change(partition, stored.log))
            .map_err(|err| from_kafka(&err))?;
        Ok((stored, change))
    }

    fn assign(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &mut TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let mut offsets = Vec::new();
        for partition in numbers(partitions) {
            let Some(stored) = self.load_offset(consumer, partition) else {
                return Ok(());
            };
            let topic = &self.shared.config.topic;
            partitions.set_partition_offset(topic, partition, Offset::Offset(stored.next))?;
            offsets.push((partition, stored));
        }
        consumer.incremental_assign(partitions)?;
        self.shared.progress.assign(&offsets);
        Ok(())
    }

    fn unassign(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<(), KafkaError> {
        self.shared.progress.unassign(&numbers(partitions));
        consumer.incremental_unassign(partitions)
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<i32> {
    let elements = partitions.elements();
    elements.iter().map(|e| e.partition()).collect()
}

impl ClientContext for Assignment {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Assignment {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let projection = &self.shared.config.name;
        let count = partitions.count();
        let (event, result) = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                ("partitions assigned", self.assign(consumer, partitions))
            }
            _ => ("partitions revoked", self.unassign(consumer, partitions)),
        };
        self.shared.progress.begin(Activity::Polling);
        match result {
            Ok(()) => tracing::info!(%projection, partitions = count, "{event}"),
            Err(error) => {
                tracing::warn!(%projection, %error, "rebalance failed");
                self.has_failed.store(true, Ordering::Release);
            }
        }
    }
}
