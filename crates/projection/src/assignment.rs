//! Librdkafka's rebalance callbacks: they assign partitions from the stored offsets.

use std::{
    collections::BTreeMap,
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
    handle::{MAX_BACKOFF, Shared, backoff},
    offsets::OffsetRanges,
    session,
};

/// The timeout of a request for a partition's first and last offset.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(2);

/// The partitions that are assigned to this consumer, and its position in each.
pub(crate) struct Assignment {
    shared: Arc<Shared>,
    /// By assigned partition.
    positions: Mutex<BTreeMap<i32, Position>>,
    has_joined: AtomicBool,
    has_failed: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    /// The offset of the next record.
    next: i64,
    /// Records were applied since the partition was assigned. Until then librdkafka may still return
    /// records that it fetched during an earlier assignment.
    has_advanced: bool,
}

impl Assignment {
    /// Creates a consumer that subscribes to the topic and has its partitions assigned by this type.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub(crate) fn create_consumer(shared: &Arc<Shared>) -> Result<BaseConsumer<Self>, KafkaError> {
        let consumer_config = &shared.config;
        let session_timeout = consumer_config.session_timeout;
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
            .set(
                "session.timeout.ms",
                session_timeout.as_millis().to_string(),
            )
            .set(
                "heartbeat.interval.ms",
                session::heartbeat_interval(session_timeout)
                    .as_millis()
                    .to_string(),
            )
            .set("reconnect.backoff.max.ms", "1000")
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
            positions: Mutex::default(),
            has_joined: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        };
        let consumer: BaseConsumer<Self> = config.create_with_context(context)?;
        consumer.subscribe(&[&consumer_config.topic])?;
        Ok(consumer)
    }

    /// Returns whether the group has assigned partitions, possibly none. No record arrives before that.
    pub(crate) fn has_joined(&self) -> bool {
        self.has_joined.load(Ordering::Acquire)
    }

    /// Returns whether an assignment failed. Only a new consumer recovers from that.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// Returns an empty range at the next offset of each assigned partition.
    pub(crate) fn positions(&self) -> OffsetRanges {
        let positions = self.positions.lock();
        let positions = positions.iter();
        positions
            .map(|(partition, at)| (*partition, (at.next, at.next)))
            .collect()
    }

    /// Advances the positions to the ends of these ranges, which the database has committed.
    pub(crate) fn advance(&self, ranges: &OffsetRanges) {
        let mut positions = self.positions.lock();
        for (partition, (_, to)) in ranges {
            let position = Position {
                next: *to,
                has_advanced: true,
            };
            positions.insert(*partition, position);
        }
    }

    /// Returns whether a record lies before those that were applied: its topic was recreated.
    pub(crate) fn has_regressed(&self, message: &BorrowedMessage<'_>) -> bool {
        let position = self.positions.lock().get(&message.partition()).copied();
        position.is_some_and(|at| at.has_advanced && message.offset() < at.next)
    }

    /// Returns the next offset and the end offset of a partition that ends before its next offset.
    ///
    /// # Errors
    /// If Kafka does not respond.
    pub(crate) fn find_recreated(
        &self,
        client: &BaseConsumer,
    ) -> Result<Option<(i64, i64)>, KafkaError> {
        let topic = &self.shared.config.topic;
        for (partition, (next, _)) in self.positions() {
            let (_, end) = client.fetch_watermarks(topic, partition, WATERMARK_TIMEOUT)?;
            if end < next {
                return Ok(Some((next, end)));
            }
        }
        Ok(None)
    }

    /// Loads the next offset of a partition. Retries until it succeeds; returns `None` at a shutdown.
    fn load_next_offset(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Option<i64> {
        let shared = &self.shared;
        let mut backoff = backoff();
        while !shared.shutdown.is_cancelled() {
            let topic = &shared.config.topic;
            let loaded = consumer
                .fetch_watermarks(topic, partition, WATERMARK_TIMEOUT)
                .map_err(|err| {
                    format!("failed to get the offsets of partition {partition} from Kafka: {err}")
                })
                .and_then(|(earliest, _)| {
                    shared.runtime.block_on(async {
                        let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
                        let offsets = shared.offsets();
                        let loading = offsets.load_or_create(&mut conn, partition, earliest);
                        loading.await.map_err(|err| err.to_string())
                    })
                });
            match loaded {
                Ok(next) => return Some(next),
                Err(reason) => shared.set_failing(&format!("failed to load offsets: {reason}")),
            }
            shared.pause(backoff.next().unwrap_or(MAX_BACKOFF));
        }
        None
    }

    fn assign(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &mut TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let numbers: Vec<i32> = partitions
            .elements()
            .iter()
            .map(|e| e.partition())
            .collect();
        for partition in numbers {
            let Some(next) = self.load_next_offset(consumer, partition) else {
                return Ok(());
            };
            let topic = &self.shared.config.topic;
            partitions.set_partition_offset(topic, partition, Offset::Offset(next))?;
            let position = Position {
                next,
                has_advanced: false,
            };
            self.positions.lock().insert(partition, position);
        }
        consumer.incremental_assign(partitions)?;
        self.has_joined.store(true, Ordering::Release);
        Ok(())
    }

    fn unassign(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let mut positions = self.positions.lock();
        for element in partitions.elements() {
            positions.remove(&element.partition());
        }
        if positions.is_empty() {
            self.has_joined.store(false, Ordering::Release);
        }
        drop(positions);
        consumer.incremental_unassign(partitions)
    }
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
        match result {
            Ok(()) => tracing::info!(%projection, partitions = count, "{event}"),
            Err(error) => {
                tracing::warn!(%projection, %error, "rebalance failed");
                self.has_failed.store(true, Ordering::Release);
            }
        }
    }
}
