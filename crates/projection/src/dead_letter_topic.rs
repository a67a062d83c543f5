//! Copies dead letters to a topic, for people and programs that watch topics and not tables.
//!
//! The table is authoritative: a dead letter is inserted in the transaction that advances the offset.
//! The copy follows at once, or after an outage when Kafka is available again. A crash right after it
//! can duplicate it.

use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};

use crate::{
    dead_letters::{self, DeadLetter},
    handle::Shared,
};

/// Maximum dead letters that are loaded together. Each can be as large as a record.
const BATCH: i64 = 20;

/// Copies the dead letters that are not in the topic yet.
///
/// # Errors
/// Errors of Kafka or the database.
pub(crate) async fn copy_pending(shared: &Shared, topic: &str) -> Result<(), String> {
    let name = &shared.config.name;
    let mut producer = None;
    loop {
        let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
        let dead_letters = dead_letters::list_uncopied(&mut conn, name, BATCH).await;
        let dead_letters = dead_letters.map_err(|err| err.to_string())?;
        // Return the connection to the pool before waiting for Kafka.
        drop(conn);
        if dead_letters.is_empty() || shared.shutdown.is_cancelled() {
            return Ok(());
        }
        // Created on demand: dead letters are rare.
        let producer = match &producer {
            Some(producer) => producer,
            None => producer.insert(connect(&shared.config.brokers).map_err(|e| e.to_string())?),
        };
        let mut ids = Vec::with_capacity(dead_letters.len());
        for dead_letter in &dead_letters {
            send(producer, topic, dead_letter)
                .await
                .map_err(|err| err.to_string())?;
            ids.push(dead_letter.summary.dead_letter_id);
        }
        let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
        let marked = dead_letters::mark_in_topic(&mut conn, &ids).await;
        marked.map_err(|err| err.to_string())?;
    }
}

fn connect(brokers: &str) -> Result<FutureProducer, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "10000")
        .set("partitioner", "murmur2_random")
        .create()
}

/// Sends the record unchanged, with its origin and error in additional headers. If it is too large with
/// these, only its key is sent, so that it does not block the next dead letters; the table has the rest.
async fn send(
    producer: &FutureProducer,
    topic: &str,
    dead_letter: &DeadLetter,
) -> Result<(), KafkaError> {
    match send_copy(producer, topic, dead_letter, Content::Whole).await {
        Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) => {
            send_copy(producer, topic, dead_letter, Content::LeftOut).await
        }
        sent => sent,
    }
}

/// The contents of a copy.
#[derive(Clone, Copy)]
enum Content {
    Whole,
    /// The key only.
    LeftOut,
}

async fn send_copy(
    producer: &FutureProducer,
    topic: &str,
    dead_letter: &DeadLetter,
    content: Content,
) -> Result<(), KafkaError> {
    let (partition, offset) = (
        dead_letter.summary.partition.to_string(),
        dead_letter.summary.record_offset.to_string(),
    );
    let mut headers = Some(OwnedHeaders::new());
    let mut add = |key: &str, value: Option<&[u8]>| {
        headers = headers.take().map(|all| all.insert(Header { key, value }));
    };
    match content {
        Content::Whole => dead_letter
            .headers()
            .for_each(|(key, value)| add(key, value)),
        Content::LeftOut => add("dlq_left_out", Some(b"payload and headers: too large")),
    }
    for (key, value) in [
        ("dlq_topic", dead_letter.summary.topic.as_str()),
        ("dlq_partition", &partition),
        ("dlq_offset", &offset),
        ("dlq_class", &dead_letter.summary.error_class),
        ("dlq_error", &dead_letter.summary.error),
    ] {
        add(key, Some(value.as_bytes()));
    }
    let mut record = FutureRecord::<[u8], [u8]>::to(topic);
    record.headers = headers;
    record.key = dead_letter.summary.key.as_deref();
    record.payload = match content {
        Content::Whole => dead_letter.payload.as_deref(),
        Content::LeftOut => None,
    };
    producer
        .send(record, rdkafka::util::Timeout::Never)
        .await
        .map(|_| ())
        .map_err(|(err, _)| err)
}
