//! The sink that speaks Kafka's protocol itself: rows become record batches in one step, without a
//! copy or an allocation a record.
//!
//! - `record_batch` encodes, `partitioner` says where a key belongs.
//! - `topics` knows the topics that records were for, with what each partition gathers.
//! - `produce` sends batches to one broker, with `produce_request` around them; `connection` and
//!   `cluster` ask for everything else. `response_layout` checks what comes back before it is decoded.
//! - `login` says who asks, by `scram` or with the password itself.
//!
//! **Invariant:** batches bear the producer id and epoch that belong to the source's name. A
//! successor gets a higher epoch, and from its first record on a partition the broker rejects there
//! whatever its predecessor still sends. No transaction is ever begun.

mod cluster;
mod connection;
mod dial;
mod login;
mod partitioner;
mod produce;
mod produce_request;
mod record_batch;
mod response_layout;
mod scram;
mod topics;

use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cli::{MAX_TOPIC_NAME_CHARS, is_topic_name};
use tokio::time::Instant;

pub(crate) use self::cluster::{Inspector, Permission, TopicFacts};
use self::{
    cluster::{Cluster, Registration},
    partitioner::partition_of,
    produce::{InFlight, ProduceConnection},
    produce_request::Part,
    record_batch::{Producer, RecordBatch},
    topics::{Place, Topic, Topics},
};
use super::{Acknowledgements, Sink, SinkError, SinkOptions};
use crate::{config::KafkaConfig, kafka::record::Record, postgres::lease::Lease};

/// Batches are sent when together they have this size, or when their page ends. Larger ones cost the
/// broker less, and make acknowledgements wait.
const REQUEST_BYTES: usize = 512 * 1024;
/// Why a record is rejected whose topic nobody made.
const NO_SUCH_TOPIC: &str = "there is no such topic";
/// Memory that the batches of all partitions keep for the next ones, together.
const KEPT_BYTES: usize = 2 * 1024 * 1024;
/// Brokers forget a name that was not used for a week, and whom it fences; this uses it. They
/// forget after a day how far a producer has come in a partition (`producer.id.expiration.ms`), and
/// would take its next batch whatever its sequence is.
const RENEWAL_INTERVAL: Duration = Duration::from_hours(12);

/// Sends record batches of its own making.
pub struct KafkaSink {
    options: SinkOptions,
    lease: Lease,
    cluster: Cluster,
    producer: Producer,
    is_fenced: bool,
    registered_at: Instant,
    tended_at: Instant,
    topics: Topics,
    connections: HashMap<i32, ProduceConnection>,
    acknowledgements: Acknowledgements,
    /// Partitions with records that were not sent yet, and how large these are together.
    gathered: Vec<Place>,
    gathered_bytes: usize,
}

impl KafkaSink {
    /// Connects, and takes the source's name: from here on the broker rejects whoever had it.
    ///
    /// # Errors
    /// If no broker answers, or none of them is new enough.
    pub async fn open(options: SinkOptions, lease: Lease) -> Result<Self, SinkError> {
        let mut cluster = Cluster::connect(&options.kafka).await?;
        let (producer, is_fenced) = match cluster.register(&options.producer_name, None).await? {
            Registration::Fenced(producer) => (producer, true),
            Registration::NotAllowed => {
                let name = &options.producer_name;
                tracing::warn!(
                    transactional_id = name,
                    "not allowed by the cluster's ACLs: a paused relay is kept from sending by its \
                     lease alone, and a failover takes longer; allow Write on it"
                );
                (cluster.anonymous_producer().await?, false)
            }
        };
        Ok(Self {
            acknowledgements: Acknowledgements::new(options.max_in_flight, options.start.clone()),
            options,
            lease,
            cluster,
            producer,
            is_fenced,
            registered_at: Instant::now(),
            tended_at: Instant::now(),
            topics: Topics::default(),
            connections: HashMap::new(),
            gathered: Vec::new(),
            gathered_bytes: 0,
        })
    }

    /// The topic's place in the list; asks for it when it comes for the first time.
    async fn topic(&mut self, name: &str) -> Result<usize, SinkError> {
        if let Some(index) = self.topics.find(name) {
            return Ok(index);
        }
        let topic = self.fetch_topic(name).await?;
        Ok(self.topics.add(topic))
    }

    async fn fetch_topic(&mut self, name: &str) -> Result<Topic, SinkError> {
        if !is_topic_name(name) {
            let shown: String = name.chars().take(MAX_TOPIC_NAME_CHARS).collect();
            return Err(SinkError::rejected(&shown, "no topic can have this name"));
        }
        let layout = self.cluster.layouts(&[name]).await?.remove(name);
        let Some(layout) = layout.filter(|layout| !layout.leaders.is_empty()) else {
            return Err(SinkError::rejected(name, NO_SUCH_TOPIC));
        };
        let max_batch_bytes = self.fetch_limit(name).await?;
        Ok(Topic::new(name, max_batch_bytes, layout.leaders))
    }

    /// How large a batch for this topic, and a record with it, may be.
    async fn fetch_limit(&mut self, topic: &str) -> Result<usize, SinkError> {
        let own = self.options.kafka.max_record_bytes;
        let limit = self.cluster.max_message_bytes(topic).await?;
        Ok(limit.map_or(own, |limit| limit.min(own)))
    }

    /// Sends what was gathered. The sink is of no use any more when that fails: what was gathered
    /// has its numbers already.
    async fn send_gathered(&mut self) -> Result<(), SinkError> {
        let sent = self.try_send_gathered().await;
        if let Err(err) = &sent {
            self.acknowledgements.fail(err.clone());
        }
        sent
    }

    /// A request to each broker that leads a part of it.
    async fn try_send_gathered(&mut self) -> Result<(), SinkError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        self.acknowledgements.ensure_usable()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = i64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(i64::MAX);
        let mut gathered = std::mem::take(&mut self.gathered);
        gathered.sort_unstable();
        for place in &gathered {
            let partition = self.topics.at_mut(*place);
            let (batch, sequence) = (&mut partition.batch, partition.next_sequence);
            // Sequences go round: after the highest comes 0.
            partition.next_sequence = sequence.wrapping_add(batch.records()) & i32::MAX;
            batch.seal(self.producer, sequence, now_ms);
        }
        for places in gathered.chunk_by(|a, b| a.leader == b.leader) {
            self.send_request(places).await?;
        }
        let kept_bytes = KEPT_BYTES / self.topics.partitions().max(1);
        for place in gathered.drain(..) {
            let partition = self.topics.at_mut(place);
            partition.is_known = true;
            partition.batch.clear(kept_bytes);
        }
        self.gathered = gathered;
        self.gathered_bytes = 0;
        Ok(())
    }

    /// Sends the batches of these partitions, which one broker leads.
    async fn send_request(&mut self, places: &[Place]) -> Result<(), SinkError> {
        let leader = places[0].leader;
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
                let address = self.cluster.address(leader.into())?;
                let (kafka, acknowledgements) =
                    (&self.options.kafka, self.acknowledgements.clone());
                entry.insert(ProduceConnection::open(address, kafka, acknowledgements).await?)
            }
        };
        let part = |place: &Place| {
            let partition = self.topics.at(*place);
            Part {
                topic: &self.topics.get(place.topic).name,
                // As many as a topic can have.
                partition: i32::try_from(place.partition).unwrap_or(i32::MAX),
                batch: partition.batch.sealed(),
                first: partition.first,
            }
        };
        let parts: Vec<Part<'_>> = places.iter().map(part).collect();
        let is_known = |place: &Place| self.topics.at(*place).is_known;
        let in_flight = if places.iter().all(is_known) {
            InFlight::Pipelined
        } else {
            InFlight::Alone
        };
        connection.send(&parts, in_flight, &self.lease).await
    }

    /// Takes the name once more, with nothing on its way. Fails if somebody else has it by now.
    async fn renew(&mut self) -> Result<(), SinkError> {
        self.acknowledgements.wait_until_empty().await?;
        let (name, current) = (&self.options.producer_name, Some(self.producer));
        match self.cluster.register(name, current).await? {
            Registration::Fenced(producer) => self.producer = producer,
            Registration::NotAllowed => return Err(SinkError::Fenced),
        }
        self.topics.restart();
        self.registered_at = Instant::now();
        Ok(())
    }
}

/// What is in the way to the brokers; none if nothing is.
pub(super) async fn why_unreachable(kafka: &KafkaConfig) -> Option<SinkError> {
    Cluster::connect(kafka).await.err()
}

/// What a broker holds against a topic's `max.message.bytes`: a batch with this record alone.
pub(super) fn batch_bytes(record: &Record<'_>) -> usize {
    RecordBatch::len_of(record)
}

impl Sink for KafkaSink {
    async fn send(&mut self, record: &Record<'_>) -> Result<(), SinkError> {
        let topic_index = match self.topics.find(record.topic) {
            Some(index) => index,
            None => self.topic(record.topic).await?,
        };
        let topic = self.topics.get(topic_index);
        let index = partition_of(record.key, topic.partitions.len());
        let alone = batch_bytes(record);
        if alone > topic.max_batch_bytes {
            // Somebody may have raised it since.
            let limit = self.fetch_limit(record.topic).await?;
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
        if is_full || self.gathered_bytes + alone > REQUEST_BYTES {
            self.send_gathered().await?;
        }
        if self.acknowledgements.is_full() {
            self.send_gathered().await?;
            self.acknowledgements.wait_for_room().await?;
        }
        let partition = &mut self.topics.get_mut(topic_index).partitions[index];
        let before = partition.batch.len();
        let is_first = before == 0;
        if is_first {
            let Some(leader) = partition.leader else {
                let reason = format!("{}-{index} has no leader", record.topic);
                return Err(SinkError::Unavailable(reason));
            };
            self.gathered.push(Place {
                leader: leader.0,
                topic: topic_index,
                partition: index,
            });
        }
        if is_first {
            partition.first = self.acknowledgements.begin_batch();
        } else {
            self.acknowledgements.join_batch();
        }
        partition.batch.push(record);
        self.gathered_bytes += partition.batch.len() - before;
        Ok(())
    }

    async fn validate_topic(&mut self, topic: &str) -> Result<(), SinkError> {
        // As it is now: what is known of it may be old.
        let found = self.fetch_topic(topic).await?;
        if self.topics.find(topic).is_none() {
            self.topics.add(found);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        self.send_gathered().await
    }

    async fn run_maintenance(&mut self) -> Result<(), SinkError> {
        if self.tended_at.elapsed() < self.options.maintenance_interval {
            return Ok(());
        }
        if self.is_fenced && self.registered_at.elapsed() > RENEWAL_INTERVAL {
            self.renew().await?;
        }
        let names: Vec<&str> = self.topics.iter().map(|topic| &*topic.name).collect();
        let layouts = self.cluster.layouts(&names).await?;
        for topic in self.topics.iter() {
            let layout = layouts.get(&*topic.name);
            let partitions = layout.map_or(0, |layout| layout.leaders.len());
            if partitions != topic.partitions.len() {
                return Err(SinkError::Unavailable(format!(
                    "topic {} has {partitions} partitions now, and had {}",
                    topic.name,
                    topic.partitions.len()
                )));
            }
        }
        self.tended_at = Instant::now();
        Ok(())
    }

    fn acknowledgements(&self) -> &Acknowledgements {
        &self.acknowledgements
    }

    fn is_fenced(&self) -> bool {
        self.is_fenced
    }
}
