//! Which partitions are ours, and where they begin: librdkafka's callbacks.

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
    following::{MAX_BACKOFF, Shared, backoff},
    offsets::Moves,
};

/// How long Kafka may take to say where a partition begins.
const WATERMARK_TIMEOUT: Duration = Duration::from_secs(2);

/// Assigns partitions from the offsets in the database, while the consumer is polled.
pub(crate) struct Assignment {
    shared: Arc<Shared>,
    /// Where we are in each partition that is ours.
    positions: Mutex<BTreeMap<i32, Position>>,
    has_joined: AtomicBool,
    has_failed: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    /// The offset of the next record.
    next: i64,
    /// Whether records were applied since the partition was assigned. Until then librdkafka may
    /// still give out what it fetched when the partition was ours before.
    has_moved: bool,
}

impl Assignment {
    /// A consumer that subscribes to the topic, and is assigned its partitions by us.
    ///
    /// # Errors
    /// If the configuration can't be used.
    pub(crate) fn consumer(shared: &Arc<Shared>) -> Result<BaseConsumer<Self>, KafkaError> {
        let options = &shared.options;
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &options.brokers)
            .set("group.id", &options.name)
            .set("client.id", &options.name)
            .set("partition.assignment.strategy", "cooperative-sticky")
            // Offsets come from the database; an offset that the topic does not have is an error.
            .set("auto.offset.reset", "error")
            .set("enable.auto.offset.store", "false")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("session.timeout.ms", "10000")
            .set("reconnect.backoff.max.ms", "1000")
            .set("fetch.error.backoff.ms", "100")
            // Partitions that are added are noticed, and read, so soon.
            .set("topic.metadata.refresh.interval.ms", "10000")
            // Bounds what waits in memory to be applied.
            .set("queued.max.messages.kbytes", "16384");
        if let Some(instance_id) = &options.instance_id {
            config.set("group.instance.id", instance_id);
        }
        let context = Self {
            shared: Arc::clone(shared),
            positions: Mutex::default(),
            has_joined: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        };
        let consumer: BaseConsumer<Self> = config.create_with_context(context)?;
        consumer.subscribe(&[&options.topic])?;
        Ok(consumer)
    }

    /// Whether the group has given us our part, be it nothing: before that, no record comes.
    pub(crate) fn has_joined(&self) -> bool {
        self.has_joined.load(Ordering::Acquire)
    }

    /// Whether partitions could not be taken, which only a new consumer can mend.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// The next offset of each partition that is ours.
    pub(crate) fn positions(&self) -> Moves {
        let positions = self.positions.lock();
        let positions = positions.iter();
        positions
            .map(|(partition, at)| (*partition, (at.next, at.next)))
            .collect()
    }

    /// The offsets were moved, in the database.
    pub(crate) fn moved(&self, moves: &Moves) {
        let mut positions = self.positions.lock();
        for (partition, (_, to)) in moves {
            let position = Position {
                next: *to,
                has_moved: true,
            };
            positions.insert(*partition, position);
        }
    }

    /// Whether a record lies before those that were applied: its topic was made anew.
    pub(crate) fn is_backwards(&self, message: &BorrowedMessage<'_>) -> bool {
        let position = self.positions.lock().get(&message.partition()).copied();
        position.is_some_and(|at| at.has_moved && message.offset() < at.next)
    }

    /// The next offset and the end of a partition that ends before it; none if there is none.
    ///
    /// # Errors
    /// If Kafka does not answer.
    pub(crate) fn ahead(&self, client: &BaseConsumer) -> Result<Option<(i64, i64)>, KafkaError> {
        let topic = &self.shared.options.topic;
        for (partition, (next, _)) in self.positions() {
            let (_, end) = client.fetch_watermarks(topic, partition, WATERMARK_TIMEOUT)?;
            if end < next {
                return Ok(Some((next, end)));
            }
        }
        Ok(None)
    }

    /// Waits for Kafka and the database as long as it takes; none if it is asked to end.
    fn next_offset(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Option<i64> {
        let shared = &self.shared;
        let mut backoff = backoff();
        while !shared.shutdown.is_cancelled() {
            let topic = &shared.options.topic;
            let loaded = consumer
                .fetch_watermarks(topic, partition, WATERMARK_TIMEOUT)
                .map_err(|err| format!("Kafka does not answer: {err}"))
                .and_then(|(earliest, _)| {
                    shared.runtime.block_on(async {
                        let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
                        let offsets = shared.offsets();
                        let loading = offsets.begin(&mut conn, partition, earliest);
                        loading.await.map_err(|err| err.to_string())
                    })
                });
            match loaded {
                Ok(next) => return Some(next),
                Err(reason) => shared.fail(&format!("can't load offsets: {reason}")),
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
            let Some(next) = self.next_offset(consumer, partition) else {
                return Ok(());
            };
            let topic = &self.shared.options.topic;
            partitions.set_partition_offset(topic, partition, Offset::Offset(next))?;
            let position = Position {
                next,
                has_moved: false,
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
        let projection = &self.shared.options.name;
        let count = partitions.count();
        let (what, result) = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                ("assigned", self.assign(consumer, partitions))
            }
            _ => ("revoked", self.unassign(consumer, partitions)),
        };
        match result {
            Ok(()) => tracing::info!(%projection, partitions = count, "{what}"),
            Err(error) => {
                tracing::warn!(%projection, %error, "rebalance failed");
                self.has_failed.store(true, Ordering::Release);
            }
        }
    }
}
