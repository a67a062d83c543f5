//! The sink that speaks Kafka's protocol itself: rows are encoded directly into record batches, without an allocation or
//! an intermediate copy per record.
//!
//! - `record_batch` encodes records, `compression` compresses them, `partitioner` assigns keys to partitions.
//! - `topics` holds the known topics and the open batch of each partition.
//! - `produce` sends batches to one broker as `produce_request`s. `cluster` sends all other requests.
//! - `client` has the options of connections. The crate `kafka_client` opens them.
//!
//! **Invariant:** batches carry the producer id and epoch of the source's transactional id (KIP-98). A successor gets a
//! higher epoch, and once it has written to a partition, the broker rejects its predecessor there. No transaction is ever
//! started.

mod client;
mod cluster;
mod compression;
mod partitioner;
mod produce;
mod produce_request;
mod record_batch;
mod topics;

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::Display,
    time::Duration,
};

use cli::{MAX_TOPIC_NAME_CHARS, is_topic_name};
use tokio::time::Instant;

pub(crate) use self::cluster::{Inspector, Permission, TopicFacts};
use self::{
    cluster::{Cluster, Registration},
    compression::Compressor,
    partitioner::partition_of,
    produce::{InFlight, ProduceConnection},
    produce_request::PartitionBatch,
    record_batch::{Producer, RecordBatch},
    topics::{PartitionIndex, Topic, Topics},
};
use super::{Acknowledgements, Sink, SinkError, SinkOptions};
use crate::{config::KafkaConfig, kafka::record::Record, postgres::lease::Lease};

/// Buffered batches are sent when they reach this total size, or at the end of a page. Larger requests cost the broker
/// less but delay acknowledgements.
const REQUEST_BYTES: usize = 512 * 1024;
const TOPIC_MISSING: &str = "the topic does not exist";
/// The memory that all batches together keep for reuse.
const KEPT_BYTES: usize = 2 * 1024 * 1024;
/// The interval between renewals of the epoch. Brokers expire an unused transactional id, and its fencing, after a week
/// (`transactional.id.expiration.ms`). They expire a producer's sequence in a partition after a day
/// (`producer.id.expiration.ms`), and then accept any sequence.
const RENEWAL_INTERVAL: Duration = Duration::from_hours(12);
/// The pause after maintenance that failed.
const MAINTENANCE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Publishes with the native client.
pub struct KafkaSink {
    options: SinkOptions,
    lease: Lease,
    cluster: Cluster,
    producer: Producer,
    has_transactional_id: bool,
    registered_at: Instant,
    maintained_at: Instant,
    next_maintenance_at: Instant,
    topics: Topics,
    connections: HashMap<i32, ProduceConnection>,
    acknowledgements: Acknowledgements,
    compressor: Compressor,
    /// Partitions with unsent records.
    buffered: Vec<PartitionIndex>,
    /// The total size of their batches.
    buffered_bytes: usize,
}

impl KafkaSink {
    /// Connects and registers the source's transactional id, which fences the previous producer.
    ///
    /// # Errors
    /// If no broker responds, or the brokers are too old.
    pub async fn open(options: SinkOptions, lease: Lease) -> Result<Self, SinkError> {
        let mut cluster = Cluster::connect(&options.kafka).await?;
        let (producer, has_transactional_id) = match cluster
            .register_producer(&options.producer_name, None)
            .await?
        {
            Registration::Registered(producer) => (producer, true),
            Registration::Denied => {
                let name = &options.producer_name;
                tracing::warn!(
                    transactional_id = name,
                    "transactional id denied by the cluster's ACLs, fencing is off: only the lease \
                     stops a paused relay, and a failover takes longer; allow Write on the id"
                );
                (cluster.unfenced_producer().await?, false)
            }
        };
        Ok(Self {
            acknowledgements: Acknowledgements::new(options.max_in_flight, options.start.clone()),
            compressor: Compressor::new(options.kafka.compression),
            lease,
            cluster,
            producer,
            has_transactional_id,
            registered_at: Instant::now(),
            maintained_at: Instant::now(),
            next_maintenance_at: Instant::now() + options.maintenance_interval,
            options,
            topics: Topics::default(),
            connections: HashMap::new(),
            buffered: Vec::new(),
            buffered_bytes: 0,
        })
    }

    /// Returns the topic's index; fetches its metadata on first use.
    async fn topic_index(&mut self, name: &str) -> Result<usize, SinkError> {
        if let Some(index) = self.topics.find(name) {
            return Ok(index);
        }
        let topic = self.fetch_topic(name).await?;
        Ok(self.topics.add(topic))
    }

    async fn fetch_topic(&mut self, name: &str) -> Result<Topic, SinkError> {
        if !is_topic_name(name) {
            let truncated: String = name.chars().take(MAX_TOPIC_NAME_CHARS).collect();
            return Err(SinkError::rejected(&truncated, "invalid topic name"));
        }
        let found = self.cluster.topics(&[name]).await?.remove(name);
        let Some(found) = found.filter(|topic| !topic.partitions.is_empty()) else {
            return Err(SinkError::rejected(name, TOPIC_MISSING));
        };
        let max_batch_bytes = self.fetch_max_batch_bytes(name).await?;
        let leaders = found.partitions.iter().map(|partition| partition.leader);
        Ok(Topic::new(name, max_batch_bytes, leaders))
    }

    /// Fails if the topic has another number of partitions now: keys may belong to other ones.
    async fn ensure_partition_count(
        &mut self,
        topic: &str,
        partitions: usize,
    ) -> Result<(), SinkError> {
        let current = self.cluster.topics(&[topic]).await?;
        let found = (current.get(topic)).map_or(0, |found| found.partitions.len());
        if found == partitions {
            return Ok(());
        }
        Err(partition_count_changed(topic, partitions, found))
    }

    /// Fetches the limit on the size of a batch for this topic.
    async fn fetch_max_batch_bytes(&mut self, topic: &str) -> Result<usize, SinkError> {
        let own = self.options.kafka.max_record_bytes;
        let limit = self.cluster.max_message_bytes(topic).await?;
        Ok(limit.map_or(own, |limit| limit.min(own)))
    }

    /// Sends the buffered batches. An error fails the sink, because the buffered records already have sequence numbers.
    async fn send_buffered(&mut self) -> Result<(), SinkError> {
        let sent = self.try_send_buffered().await;
        if let Err(err) = &sent {
            self.acknowledgements.fail(err.clone());
        }
        sent
    }

    /// Sends one request to each leader.
    async fn try_send_buffered(&mut self) -> Result<(), SinkError> {
        if self.buffered.is_empty() {
            return Ok(());
        }
        self.acknowledgements.ensure_usable()?;
        let mut buffered = std::mem::take(&mut self.buffered);
        buffered.sort_unstable();
        for index in &buffered {
            let partition = self.topics.partition_mut(*index);
            let (batch, sequence) = (&mut partition.batch, partition.next_sequence);
            // Sequences wrap around to 0 after `i32::MAX`.
            partition.next_sequence = sequence.wrapping_add(batch.records()) & i32::MAX;
            batch.seal(self.producer, sequence, &mut self.compressor);
        }
        for partitions in buffered.chunk_by(|a, b| a.leader == b.leader) {
            self.send_request(partitions).await?;
        }
        let kept_bytes = KEPT_BYTES / self.topics.partition_count().max(1);
        for index in buffered.drain(..) {
            let partition = self.topics.partition_mut(index);
            partition.is_known = true;
            partition.batch.clear(kept_bytes);
        }
        self.buffered = buffered;
        self.buffered_bytes = 0;
        Ok(())
    }

    /// Sends the batches of these partitions, which have the same leader.
    async fn send_request(&mut self, partitions: &[PartitionIndex]) -> Result<(), SinkError> {
        let leader = partitions[0].leader;
        if let Some(connection) = self.connections.get(&leader) {
            let is_stale = connection.is_stale();
            if is_stale {
                connection.drain().await?;
            }
            if is_stale || connection.is_closed() {
                self.connections.remove(&leader);
            }
        }
        let connection = match self.connections.entry(leader) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let address = self.cluster.address(leader)?;
                let (kafka, options) = (&self.options.kafka, self.cluster.options());
                let acknowledgements = self.acknowledgements.clone();
                let opening =
                    ProduceConnection::open(leader, address, kafka, options, acknowledgements);
                entry.insert(opening.await?)
            }
        };
        let batch = |index: &PartitionIndex| {
            let partition = self.topics.partition(*index);
            PartitionBatch {
                topic: &self.topics.get(index.topic).name,
                // A partition number always fits.
                partition: i32::try_from(index.partition).unwrap_or(i32::MAX),
                bytes: partition.batch.sealed(),
                first: partition.first,
            }
        };
        let batches: Vec<PartitionBatch<'_>> = partitions.iter().map(batch).collect();
        let is_known = |index: &PartitionIndex| self.topics.partition(*index).is_known;
        let in_flight = if partitions.iter().all(is_known) {
            InFlight::Pipelined
        } else {
            InFlight::Alone
        };
        connection.send(&batches, in_flight, &self.lease).await
    }

    /// Renews the producer epoch while nothing is in flight. Fails if another producer took over.
    async fn renew_epoch(&mut self) -> Result<(), SinkError> {
        self.acknowledgements.wait_until_empty().await?;
        let (name, current) = (&self.options.producer_name, Some(self.producer));
        match self.cluster.register_producer(name, current).await? {
            Registration::Registered(producer) => self.producer = producer,
            Registration::Denied => {
                return Err(SinkError::Unavailable(format!(
                    "transactional id {name} is no longer allowed; allow Write on it"
                )));
            }
        }
        self.topics.reset_sequences();
        self.registered_at = Instant::now();
        Ok(())
    }
}

fn partition_count_changed(topic: &str, before: usize, now: usize) -> SinkError {
    SinkError::Unavailable(format!(
        "partition count of topic {topic} changed from {before} to {now}"
    ))
}

/// Connects with the native client to find out why librdkafka cannot; `None` if this works.
pub(super) async fn diagnose_connection(kafka: &KafkaConfig) -> Option<SinkError> {
    Cluster::connect(kafka).await.err()
}

/// Returns the error of a broker at this address.
fn unavailable(address: &str, reason: impl Display) -> SinkError {
    kafka_client::unavailable(address, reason).into()
}

/// Returns the size of a batch with this record alone, which brokers compare with `max.message.bytes`.
pub(super) fn batch_bytes(record: &Record<'_>) -> usize {
    RecordBatch::len_of(record)
}

/// Returns the partition that the record names, or that of its key.
fn partition_index(record: &Record<'_>, partitions: usize) -> Result<usize, SinkError> {
    let Some(partition) = record.partition else {
        return Ok(partition_of(record.key, partitions));
    };
    let index = usize::try_from(partition).ok();
    index.filter(|index| *index < partitions).ok_or_else(|| {
        let reason = format!("partition {partition} does not exist, the topic has {partitions}");
        SinkError::rejected(record.topic, reason)
    })
}

impl Sink for KafkaSink {
    async fn send(&mut self, record: &Record<'_>) -> Result<(), SinkError> {
        let topic_index = match self.topics.find(record.topic) {
            Some(index) => index,
            None => self.topic_index(record.topic).await?,
        };
        let topic = self.topics.get(topic_index);
        let partitions = topic.partitions.len();
        let index = match partition_index(record, partitions) {
            Ok(index) => index,
            Err(err) => {
                // It may have been added since.
                self.ensure_partition_count(record.topic, partitions)
                    .await?;
                return Err(err);
            }
        };
        let topic = self.topics.get(topic_index);
        let alone = batch_bytes(record);
        if alone > topic.max_batch_bytes {
            // The limit may have been raised since.
            let limit = self.fetch_max_batch_bytes(record.topic).await?;
            self.topics.get_mut(topic_index).max_batch_bytes = limit;
        }
        let topic = self.topics.get(topic_index);
        if alone > topic.max_batch_bytes {
            let limit = topic.max_batch_bytes;
            return Err(SinkError::too_large(
                record.topic,
                alone,
                limit,
                &self.options.kafka,
            ));
        }
        let is_full = topic.partitions[index].batch.len() + alone > topic.max_batch_bytes;
        if is_full || self.buffered_bytes + alone > REQUEST_BYTES {
            self.send_buffered().await?;
        }
        if self.acknowledgements.is_full() {
            self.send_buffered().await?;
            self.acknowledgements.wait_for_capacity().await?;
        }
        let partition = &mut self.topics.get_mut(topic_index).partitions[index];
        let before = partition.batch.len();
        let is_first = before == 0;
        if is_first {
            let Some(leader) = partition.leader else {
                let reason = format!("partition {}-{index} has no leader", record.topic);
                return Err(SinkError::Unavailable(reason));
            };
            self.buffered.push(PartitionIndex {
                leader,
                topic: topic_index,
                partition: index,
            });
        }
        if is_first {
            partition.batch.begin(self.options.clock.now_ms());
            partition.first = self.acknowledgements.begin_batch();
        } else {
            self.acknowledgements.join_batch();
        }
        partition.batch.push(record);
        self.buffered_bytes += partition.batch.len() - before;
        Ok(())
    }

    async fn validate_topic(&mut self, topic: &str) -> Result<(), SinkError> {
        // Not from the cache, which may be outdated.
        let found = self.fetch_topic(topic).await?;
        if self.topics.find(topic).is_none() {
            self.topics.add(found);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        self.send_buffered().await
    }

    async fn run_maintenance(&mut self) -> Result<(), SinkError> {
        let interval = self.options.maintenance_interval;
        if Instant::now() < self.next_maintenance_at {
            return Ok(());
        }
        self.next_maintenance_at = Instant::now() + interval.min(MAINTENANCE_RETRY_INTERVAL);
        if self.has_transactional_id && self.registered_at.elapsed() > RENEWAL_INTERVAL {
            self.renew_epoch().await?;
        }
        let names: Vec<&str> = self.topics.iter().map(|topic| &*topic.name).collect();
        let current = match self.cluster.topics(&names).await {
            Ok(current) => current,
            // Brokers that do not respond for a while are waited for, as with Produce requests.
            Err(SinkError::Unavailable(_) | SinkError::Unauthenticated(_))
                if self.maintained_at.elapsed()
                    < interval + self.options.kafka.delivery_timeout =>
            {
                return Ok(());
            }
            Err(err) => return Err(err),
        };
        for topic in self.topics.iter() {
            let found = current.get(&*topic.name);
            let partitions = found.map_or(0, |found| found.partitions.len());
            if partitions != topic.partitions.len() {
                let known = topic.partitions.len();
                return Err(partition_count_changed(&topic.name, known, partitions));
            }
        }
        self.maintained_at = Instant::now();
        self.next_maintenance_at = self.maintained_at + interval;
        Ok(())
    }

    fn acknowledgements(&self) -> &Acknowledgements {
        &self.acknowledgements
    }

    fn has_fencing(&self) -> bool {
        // With epoch 0 the producer id is new, because the epochs of the last one are exhausted or it has expired. The broker
        // fences only producers with the same id.
        self.has_transactional_id && self.producer.epoch > 0
    }
}
