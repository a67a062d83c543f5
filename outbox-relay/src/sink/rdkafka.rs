//! The sink over librdkafka: the conservative choice.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, Message as _, OwnedHeaders},
    producer::{
        BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext,
        ThreadedProducer,
    },
};

use super::{InFlight, NO_SUCH_TOPIC, Sink, SinkError, SinkOptions, watermark::Watermark};
use crate::{lease::Lease, route::Record};

/// librdkafka waits so long for more records before it sends a batch. At 0 batches stay small
/// under load (half the throughput, measured); this much does not show in the latency.
const LINGER_MS: &str = "0.2";
/// Pause before another try when librdkafka's queue is full, by its bound on bytes.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);
/// How long a new producer may look for the brokers before its first record.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends through librdkafka's idempotent producer.
pub struct RdKafkaSink {
    /// Taken only when the sink is dropped.
    producer: Option<Arc<ThreadedProducer<Deliveries>>>,
    in_flight: InFlight,
    lease: Lease,
    /// Topics that are there.
    topics: HashSet<String>,
}

impl RdKafkaSink {
    /// Connects, and waits until a broker answers.
    ///
    /// # Errors
    /// If none does, or the configuration can't be used.
    pub async fn open(options: SinkOptions, lease: Lease) -> Result<Self, SinkError> {
        let SinkOptions {
            kafka,
            max_in_flight,
            ..
        } = options;
        let in_flight = InFlight::new(max_in_flight);
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &kafka.brokers)
            .set("client.id", "outbox-relay")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // As Java clients do, so that all producers of a topic agree on the partition of a key.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", LINGER_MS)
            // A record that is given up makes a gap that later records of its key would fill, so
            // the whole producer is given up with it. Short, because a successor waits for as long.
            .set(
                "message.timeout.ms",
                kafka.delivery_timeout.as_millis().to_string(),
            )
            .set("queue.buffering.max.messages", "0")
            .set(
                "queue.buffering.max.kbytes",
                (kafka.max_in_flight_bytes / 1024).to_string(),
            )
            .set("message.max.bytes", kafka.max_record_bytes.to_string());
        let context = Deliveries {
            watermark: Mutex::new(Watermark::new(max_in_flight)),
            in_flight: in_flight.clone(),
        };
        let producer = tokio::task::spawn_blocking(move || {
            let producer: ThreadedProducer<Deliveries> = config.create_with_context(context)?;
            producer.client().fetch_metadata(None, METADATA_TIMEOUT)?;
            Ok::<_, KafkaError>(producer)
        })
        .await
        .map_err(|err| SinkError::Unavailable(err.to_string()))?
        .map_err(|err| SinkError::Unavailable(err.to_string()))?;
        Ok(Self {
            producer: Some(Arc::new(producer)),
            in_flight,
            lease,
            topics: HashSet::new(),
        })
    }

    /// Refuses a topic that is not there: librdkafka would only let its records time out.
    async fn check_topic(&mut self, name: &str) -> Result<(), SinkError> {
        if self.topics.contains(name) {
            return Ok(());
        }
        let Some(producer) = self.producer.clone() else {
            return Err(SinkError::Unavailable("closed".into()));
        };
        // All topics, because a question for one would create it where brokers are set to do so.
        let asking = move || producer.client().fetch_metadata(None, METADATA_TIMEOUT);
        let metadata = tokio::task::spawn_blocking(asking)
            .await
            .map_err(|err| SinkError::Unavailable(err.to_string()))?
            .map_err(|err| SinkError::Unavailable(err.to_string()))?;
        let names = metadata
            .topics()
            .iter()
            .map(|topic| topic.name().to_owned());
        self.topics = names.collect();
        if self.topics.contains(name) {
            return Ok(());
        }
        Err(SinkError::refused(name, NO_SUCH_TOPIC))
    }
}

impl Sink for RdKafkaSink {
    async fn send(&mut self, record: &Record<'_>) -> Result<(), SinkError> {
        self.check_topic(record.topic).await?;
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
        self.in_flight.wait_for_room().await?;
        let number = usize::try_from(self.in_flight.begin()).unwrap_or(usize::MAX);
        let mut base_record = BaseRecord::with_opaque_to(record.topic, number)
            .key(record.key)
            .headers(headers);
        base_record.payload = record.payload;
        loop {
            self.lease.wait().await;
            match producer.send(base_record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    base_record = again;
                    self.in_flight.check()?;
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err((err, _)) => {
                    self.in_flight.take_back();
                    return Err(classify(&err, record.topic));
                }
            }
        }
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        // librdkafka sends by itself.
        Ok(())
    }

    async fn tend(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    fn is_fenced(&self) -> bool {
        false
    }
}

impl Drop for RdKafkaSink {
    fn drop(&mut self) {
        // Dropping it purges its queue and joins its thread, which blocks for a moment.
        if let Some(producer) = self.producer.take() {
            std::thread::spawn(move || drop(producer));
        }
    }
}

/// Hears of deliveries, on librdkafka's thread.
struct Deliveries {
    /// librdkafka acknowledges the records of different partitions in any order.
    watermark: Mutex<Watermark>,
    in_flight: InFlight,
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        // An idle relay would not notice by itself that nobody is there to ship to.
        if let Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::AllBrokersDown) =
            error.rdkafka_error_code()
        {
            let reason = reason.to_owned();
            self.in_flight.fail(SinkError::Unavailable(reason));
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        match result {
            Ok(_) => {
                let mut watermark = self
                    .watermark
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                watermark.acknowledge(number as u64);
                self.in_flight.acknowledge_up_to(watermark.acknowledged());
            }
            Err((err, message)) => self.in_flight.fail(classify(err, message.topic())),
        }
    }
}

/// Tells what will never be taken from what a new producer may get through.
fn classify(err: &KafkaError, topic: &str) -> SinkError {
    use RDKafkaErrorCode as Code;
    match err.rdkafka_error_code() {
        Some(
            Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::MessageBatchTooLarge
            | Code::InvalidRecord
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::PolicyViolation,
        ) => SinkError::refused(topic, err),
        _ => SinkError::Unavailable(err.to_string()),
    }
}
