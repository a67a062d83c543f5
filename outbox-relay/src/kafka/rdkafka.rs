//! The sink over librdkafka: the conservative choice.

mod access;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, Message as _, OwnedHeaders},
    producer::{
        BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext,
        PurgeConfig, ThreadedProducer,
    },
};

use tokio::{task::JoinHandle, time::Instant};

use self::access::client_config;
use super::{
    Acknowledgements, Sink, SinkError, SinkOptions,
    native::{batch_bytes, why_unreachable},
};
use crate::{kafka::record::Record, postgres::lease::Lease};

/// librdkafka waits so long for more records before it sends a batch. At 0 batches stay small
/// under load (half the throughput, measured); this much does not show in the latency.
const LINGER_MS: &str = "0.2";
/// Larger batches are not made of more than one record.
pub(crate) const MAX_BATCH_BYTES: usize = 1_000_000;
/// Pause before another try when librdkafka's queue is full, by its bound on bytes.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);
/// Why a record is rejected whose topic is not among those that the brokers show.
const NOT_SEEN: &str = "there is no such topic, or it may not be seen";
/// How exactly the age of what is on its way is known.
const AGE_INTERVAL: Duration = Duration::from_millis(50);
/// How long a new producer may look for the brokers before its first record.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked meanwhile whether that is in vain.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Sends through librdkafka's idempotent producer.
pub struct RdKafkaSink {
    /// Taken only when the sink is dropped.
    producer: Option<Arc<ThreadedProducer<Deliveries>>>,
    watching: JoinHandle<()>,
    acknowledgements: Acknowledgements,
    lease: Lease,
    /// How large a record of a topic may be; only of topics that are there.
    limits: HashMap<String, usize>,
    options: SinkOptions,
}

impl RdKafkaSink {
    /// Connects, and waits until a broker answers.
    ///
    /// # Errors
    /// If none does, or the configuration can't be used.
    pub async fn open(options: SinkOptions, lease: Lease) -> Result<Self, SinkError> {
        let kafka = &options.kafka;
        let acknowledgements = Acknowledgements::new(options.max_in_flight, options.start.clone());
        let config = client_config(
            kafka,
            &[
                ("enable.idempotence", "true"),
                ("acks", "all"),
                // As Java clients do, so that all producers of a topic agree on the partition of a key.
                ("partitioner", "murmur2_random"),
                ("linger.ms", LINGER_MS),
                ("batch.size", &MAX_BATCH_BYTES.to_string()),
                // A record that is given up makes a gap that later records of its key would fill, so
                // the whole producer is given up with it. Short, because a successor waits for as long.
                (
                    "message.timeout.ms",
                    &kafka.delivery_timeout.as_millis().to_string(),
                ),
                ("queue.buffering.max.messages", "0"),
                (
                    "queue.buffering.max.kbytes",
                    &(kafka.max_in_flight_bytes / 1024).to_string(),
                ),
                ("message.max.bytes", &kafka.max_record_bytes.to_string()),
            ],
        )?;
        let context = Deliveries {
            acknowledgements: acknowledgements.clone(),
        };
        let failed = acknowledgements.clone();
        let producer = tokio::task::spawn_blocking(move || connect(&config, context, &failed))
            .await
            .map_err(|err| SinkError::Unavailable(err.to_string()))?;
        let producer = match producer {
            Ok(producer) => producer,
            // librdkafka says of most mistakes that all brokers are down.
            Err(err) if kafka.properties.has_login() => return Err(err),
            Err(err) => return Err(why_unreachable(kafka).await.unwrap_or(err)),
        };
        let producer = Arc::new(producer);
        // Well before librdkafka does so record by record.
        let limit = kafka.delivery_timeout * 3 / 4;
        let watching =
            give_up_as_a_whole(Arc::downgrade(&producer), acknowledgements.clone(), limit);
        Ok(Self {
            producer: Some(producer),
            watching: tokio::spawn(watching),
            acknowledgements,
            lease,
            limits: HashMap::new(),
            options,
        })
    }

    /// Rejects what librdkafka would only let time out, a topic that is not there, and what the
    /// broker would reject when records behind it are on their way already.
    async fn check(&mut self, record: &Record<'_>) -> Result<(), SinkError> {
        let bytes = batch_bytes(record);
        if self
            .limits
            .get(record.topic)
            .is_some_and(|limit| bytes <= *limit)
        {
            return Ok(());
        }
        // New, or somebody may have raised its limit since.
        let limit = self.fetch_limit(record.topic).await?;
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

    /// How large a batch for this topic, and a record with it, may be.
    async fn fetch_limit(&self, topic: &str) -> Result<usize, SinkError> {
        const LIMIT: &str = "max.message.bytes";
        let own = self.options.kafka.max_record_bytes;
        let admin: AdminClient<DefaultClientContext> = client_config(&self.options.kafka, &[])?
            .create()
            .map_err(unavailable)?;
        // Of all topics, because asking for one would make it where brokers are set to do so.
        let asking = move || {
            let metadata = admin.inner().fetch_metadata(None, METADATA_TIMEOUT);
            metadata.map(|metadata| (admin, metadata))
        };
        let (admin, metadata) = tokio::task::spawn_blocking(asking)
            .await
            .map_err(|err| SinkError::Unavailable(err.to_string()))?
            .map_err(unavailable)?;
        if metadata.topics().iter().all(|known| known.name() != topic) {
            return Err(SinkError::rejected(topic, NOT_SEEN));
        }
        let options = AdminOptions::new().request_timeout(Some(METADATA_TIMEOUT));
        let resource = [ResourceSpecifier::Topic(topic)];
        let results = admin.describe_configs(&resource, &options).await;
        let config = results.map_err(unavailable)?.pop().and_then(Result::ok);
        // Not allowed to ask: the broker will say.
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
        self.check(record).await?;
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
        self.acknowledgements.wait_for_room().await?;
        // librdkafka acknowledges the records of a batch one by one.
        let number = self.acknowledgements.begin_batch();
        let opaque = usize::try_from(number).unwrap_or(usize::MAX);
        let mut base_record = BaseRecord::with_opaque_to(record.topic, opaque)
            .key(record.key)
            .headers(headers);
        base_record.payload = record.payload;
        loop {
            self.lease.wait_until_valid().await;
            match producer.send(base_record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    base_record = again;
                    self.acknowledgements.ensure_usable()?;
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err((err, _)) => {
                    self.acknowledgements.take_back(number);
                    return Err(classify(&err, record.topic));
                }
            }
        }
    }

    async fn validate_topic(&mut self, topic: &str) -> Result<(), SinkError> {
        let limit = self.fetch_limit(topic).await?;
        self.limits.insert(topic.to_owned(), limit);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        // librdkafka sends by itself.
        Ok(())
    }

    async fn run_maintenance(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn acknowledgements(&self) -> &Acknowledgements {
        &self.acknowledgements
    }

    fn is_fenced(&self) -> bool {
        false
    }
}

impl Drop for RdKafkaSink {
    fn drop(&mut self) {
        self.watching.abort();
        // Dropping it joins its thread, which blocks for a moment; until then it would go on sending.
        if let Some(producer) = self.producer.take() {
            producer.purge(PurgeConfig::default().queue().inflight());
            std::thread::spawn(move || drop(producer));
        }
    }
}

/// Waits until a broker answers, or until it is known that none will.
fn connect(
    config: &ClientConfig,
    context: Deliveries,
    acknowledgements: &Acknowledgements,
) -> Result<ThreadedProducer<Deliveries>, SinkError> {
    let producer: ThreadedProducer<Deliveries> =
        config.create_with_context(context).map_err(unavailable)?;
    let deadline = Instant::now() + METADATA_TIMEOUT;
    loop {
        match producer.client().fetch_metadata(None, LOOK_INTERVAL) {
            Ok(_) => return Ok(producer),
            Err(err) if Instant::now() > deadline => return Err(unavailable(err)),
            Err(_) => acknowledgements.ensure_usable()?,
        }
    }
}

/// Gives up everything at once when something fails, or the oldest record on its way is older than
/// `limit`. By itself librdkafka gives up one record after the other and sends what is younger
/// meanwhile, behind the gap.
async fn give_up_as_a_whole(
    producer: Weak<ThreadedProducer<Deliveries>>,
    acknowledgements: Acknowledgements,
    limit: Duration,
) {
    // How many were sent by when.
    let mut sent: VecDeque<(u64, Instant)> = VecDeque::new();
    loop {
        tokio::select! {
            _ = acknowledgements.failed() => break,
            () = tokio::time::sleep(AGE_INTERVAL) => {}
        }
        let (count, now) = (acknowledgements.sent(), Instant::now());
        if sent.back().is_none_or(|(known, _)| *known < count) {
            sent.push_back((count, now));
        }
        let acknowledged = acknowledgements.acknowledged();
        while sent
            .front()
            .is_some_and(|(count, _)| *count <= acknowledged)
        {
            sent.pop_front();
        }
        if sent.front().is_some_and(|(_, at)| now - *at > limit) {
            let reason = format!("no acknowledgement within {limit:?}");
            acknowledgements.fail(SinkError::Unavailable(reason));
            break;
        }
    }
    if let Some(producer) = producer.upgrade() {
        producer.purge(PurgeConfig::default().queue().inflight());
    }
}

/// Hears of deliveries, on librdkafka's thread.
struct Deliveries {
    acknowledgements: Acknowledgements,
}

impl ClientContext for Deliveries {
    /// Once a second and more often while a broker is away: what matters of it is said elsewhere.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode as Code;
        tracing::debug!(%error, reason, "librdkafka");
        // An idle relay would not notice by itself that nobody is there to publish to.
        if let Some(Code::Fatal | Code::AllBrokersDown | Code::SSL | Code::Authentication) =
            error.rdkafka_error_code()
        {
            let reason = reason.to_owned();
            self.acknowledgements.fail(SinkError::Unavailable(reason));
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        match result {
            Ok(_) => self.acknowledgements.acknowledge([number as u64]),
            Err((err, message)) => self.acknowledgements.fail(classify(err, message.topic())),
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
        ) => SinkError::rejected(topic, err),
        _ => SinkError::Unavailable(err.to_string()),
    }
}
