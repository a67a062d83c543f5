//! The sink based on librdkafka: widely used, slower than the native client.

mod access;
mod delivery;
mod queue;
mod watchdog;

use std::{collections::HashMap, sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, PurgeConfig, ThreadedProducer},
};
use tokio::{task::JoinHandle, time::Instant};

use self::{
    access::client_config,
    delivery::{DeliveryReports, classify},
    queue::Queue,
    watchdog::Watchdog,
};
use super::{
    Acknowledgements, Sink, SinkError, SinkOptions,
    native::{batch_bytes, diagnose_connection},
};
use crate::{kafka::record::Record, postgres::lease::Lease};

/// `linger.ms`. At 0 batches stay small under load, with half the throughput; 0.2 ms does not measurably add latency.
const LINGER_MS: &str = "0.2";
/// `batch.size`. Only a batch with a single record may be larger.
pub(crate) const MAX_BATCH_BYTES: usize = 1_000_000;
/// The pause before a retry while librdkafka's queue has reached its limit on bytes.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);
const TOPIC_MISSING: &str = "the topic does not exist, or the relay may not describe it";
/// The interval of librdkafka's statistics, which have the throttle times.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(5);
/// The limit on connecting, and on metadata requests.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between checks for a failure while connecting.
const CONNECT_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Publishes with librdkafka's idempotent producer.
pub struct RdKafkaSink {
    /// `None` only during the drop.
    producer: Option<Arc<ThreadedProducer<DeliveryReports>>>,
    watchdog: JoinHandle<()>,
    acknowledgements: Acknowledgements,
    queue: Arc<Queue>,
    lease: Lease,
    /// The limit on the size of a record, for each known topic.
    limits: HashMap<String, usize>,
    options: SinkOptions,
}

impl RdKafkaSink {
    /// Connects, and waits until a broker responds.
    ///
    /// # Errors
    /// If no broker responds, or the configuration is invalid.
    pub async fn open(options: SinkOptions, lease: Lease) -> Result<Self, SinkError> {
        let kafka = &options.kafka;
        let acknowledgements = Acknowledgements::new(options.max_in_flight, options.start.clone());
        let config = client_config(
            kafka,
            &[
                ("enable.idempotence", "true"),
                ("acks", "all"),
                // Like Java clients: all producers of a topic must assign a key to the same partition.
                ("partitioner", "murmur2_random"),
                ("linger.ms", LINGER_MS),
                ("batch.size", &MAX_BATCH_BYTES.to_string()),
                // An expired record leaves a gap that later records of its key would follow, so the whole
                // producer is dropped. Short, because a successor waits this long.
                (
                    "message.timeout.ms",
                    &kafka.delivery_timeout.as_millis().to_string(),
                ),
                ("queue.buffering.max.messages", "0"),
                (
                    "queue.buffering.max.kbytes",
                    &(kafka.max_in_flight_bytes / 1024).to_string(),
                ),
                ("compression.type", kafka.compression.name()),
                ("message.max.bytes", &kafka.max_record_bytes.to_string()),
                (
                    "statistics.interval.ms",
                    &STATISTICS_INTERVAL.as_millis().to_string(),
                ),
            ],
        )?;
        let queue = Arc::new(Queue::new(kafka.max_in_flight_bytes));
        let context = DeliveryReports {
            acknowledgements: acknowledgements.clone(),
            queue: Arc::clone(&queue),
        };
        let failed = acknowledgements.clone();
        let producer = tokio::task::spawn_blocking(move || connect(&config, context, &failed))
            .await
            .map_err(|err| SinkError::Unavailable(err.to_string()))?;
        let producer = match producer {
            Ok(producer) => producer,
            // librdkafka reports most configuration errors as "all brokers are down".
            Err(err) if kafka.properties.has_login() => return Err(err),
            Err(err) => return Err(diagnose_connection(kafka).await.unwrap_or(err)),
        };
        let producer = Arc::new(producer);
        let watchdog = Watchdog {
            producer: Arc::downgrade(&producer),
            acknowledgements: acknowledgements.clone(),
            queue: Arc::clone(&queue),
            delivery_timeout: kafka.delivery_timeout,
        };
        Ok(Self {
            producer: Some(producer),
            watchdog: tokio::spawn(watchdog.run()),
            acknowledgements,
            queue,
            lease,
            limits: HashMap::new(),
            options,
        })
    }

    /// Rejects a record for a missing topic, which librdkafka would let time out, and a record that is too large, which
    /// the broker would reject after later records were sent.
    async fn validate_record(&mut self, record: &Record<'_>) -> Result<(), SinkError> {
        let bytes = batch_bytes(record);
        if self
            .limits
            .get(record.topic)
            .is_some_and(|limit| bytes <= *limit)
        {
            return Ok(());
        }
        // Unknown topic, or its limit may have been raised.
        let limit = self.fetch_max_batch_bytes(record.topic).await?;
        self.limits.insert(record.topic.to_owned(), limit);
        if bytes > limit {
            return Err(SinkError::too_large(
                record.topic,
                bytes,
                limit,
                &self.options.kafka,
            ));
        }
        Ok(())
    }

    /// Fetches the limit on the size of a batch for this topic.
    async fn fetch_max_batch_bytes(&self, topic: &str) -> Result<usize, SinkError> {
        const LIMIT: &str = "max.message.bytes";
        let own = self.options.kafka.max_record_bytes;
        let admin: AdminClient<DefaultClientContext> = client_config(&self.options.kafka, &[])?
            .create()
            .map_err(unavailable)?;
        // For all topics: a request for one topic would create it if the brokers allow that.
        let fetch = move || {
            let metadata = admin.inner().fetch_metadata(None, METADATA_TIMEOUT);
            metadata.map(|metadata| (admin, metadata))
        };
        let (admin, metadata) = tokio::task::spawn_blocking(fetch)
            .await
            .map_err(|err| SinkError::Unavailable(err.to_string()))?
            .map_err(unavailable)?;
        if metadata.topics().iter().all(|known| known.name() != topic) {
            return Err(SinkError::rejected(topic, TOPIC_MISSING));
        }
        let options = AdminOptions::new().request_timeout(Some(METADATA_TIMEOUT));
        let resource = [ResourceSpecifier::Topic(topic)];
        let results = admin.describe_configs(&resource, &options).await;
        let config = results.map_err(unavailable)?.pop().and_then(Result::ok);
        // Without the permission to describe configurations the broker enforces the limit.
        let limit = config
            .as_ref()
            .and_then(|config| config.get(LIMIT)?.value.as_ref()?.parse::<usize>().ok());
        Ok(limit.map_or(own, |limit| limit.min(own)))
    }
}

fn unavailable(err: KafkaError) -> SinkError {
    SinkError::Unavailable(err.to_string())
}

impl Sink for RdKafkaSink {
    async fn send(&mut self, record: &Record<'_>) -> Result<(), SinkError> {
        self.validate_record(record).await?;
        let Some(producer) = &self.producer else {
            return Err(SinkError::Unavailable("closed".into()));
        };
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.count());
        for (key, value) in record.headers.iter() {
            headers = headers.insert(Header {
                key,
                value: Some(value),
            });
        }
        self.acknowledgements.wait_for_capacity().await?;
        let bytes = queue::bytes_of(record.key, record.payload, record.headers.iter());
        while !self.queue.has_capacity(bytes) {
            self.acknowledgements.ensure_usable()?;
            tokio::time::sleep(QUEUE_FULL_PAUSE).await;
        }
        // Before it can be acknowledged.
        self.queue.add(bytes);
        // librdkafka acknowledges the records of a batch one by one.
        let number = self.acknowledgements.begin_batch();
        let opaque = usize::try_from(number).unwrap_or(usize::MAX);
        let mut base_record = BaseRecord::with_opaque_to(record.topic, opaque)
            .key(record.key)
            .headers(headers)
            .timestamp(
                record
                    .timestamp_ms
                    .unwrap_or_else(|| self.options.clock.now_ms()),
            );
        base_record.partition = record.partition;
        base_record.payload = record.payload;
        loop {
            self.lease.wait_until_valid().await;
            match producer.send(base_record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    base_record = returned;
                    self.acknowledgements.ensure_usable()?;
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err((err, _)) => {
                    self.acknowledgements.undo_begin(number);
                    self.queue.remove(bytes);
                    return Err(classify(&err, record.topic));
                }
            }
        }
    }

    async fn validate_topic(&mut self, topic: &str) -> Result<(), SinkError> {
        let limit = self.fetch_max_batch_bytes(topic).await?;
        self.limits.insert(topic.to_owned(), limit);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        // librdkafka sends on its own thread.
        Ok(())
    }

    async fn run_maintenance(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn acknowledgements(&self) -> &Acknowledgements {
        &self.acknowledgements
    }

    fn has_fencing(&self) -> bool {
        false
    }
}

impl Drop for RdKafkaSink {
    fn drop(&mut self) {
        self.watchdog.abort();
        // Purged first because librdkafka sends until it is dropped. The drop blocks on joining its thread.
        if let Some(producer) = self.producer.take() {
            producer.purge(PurgeConfig::default().queue().inflight());
            std::thread::spawn(move || drop(producer));
        }
    }
}

/// Creates a producer, and waits until a broker responds or the connection fails.
fn connect(
    config: &ClientConfig,
    context: DeliveryReports,
    acknowledgements: &Acknowledgements,
) -> Result<ThreadedProducer<DeliveryReports>, SinkError> {
    let producer: ThreadedProducer<DeliveryReports> =
        config.create_with_context(context).map_err(unavailable)?;
    let deadline = Instant::now() + METADATA_TIMEOUT;
    loop {
        match producer
            .client()
            .fetch_metadata(None, CONNECT_POLL_INTERVAL)
        {
            Ok(_) => return Ok(producer),
            Err(err) if Instant::now() > deadline => return Err(unavailable(err)),
            Err(_) => acknowledgements.ensure_usable()?,
        }
    }
}
