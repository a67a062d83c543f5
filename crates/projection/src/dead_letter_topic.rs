//! Copies dead letters to a topic, for people and programs that watch topics and not tables.
//!
//! The table is authoritative: a dead letter is inserted in the transaction that advances the offset.
//! The copy follows at once, or after an outage when Kafka is available again. One replica copies at a time.
//! A crash right after a copy can duplicate it.

use diesel_async::{AsyncConnection as _, AsyncPgConnection};
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

/// The limit for a copy. Twice this, for a copy without contents, must be less than the limit of an idle transaction.
const SEND_TIMEOUT_MS: &str = "5000";

/// The end of a run of [`copy_pending`].
pub(crate) enum Copying {
    /// No dead letter is left, or the service shuts down.
    Complete,
    /// Another replica is copying. It may have read the table before the newest dead letter was inserted.
    ByAnotherReplica,
}

/// Copies the dead letters that are not in the topic yet.
///
/// # Errors
/// Errors of Kafka or the database.
pub(crate) async fn copy_pending(shared: &Shared, topic: &str) -> anyhow::Result<Copying> {
    let mut producer = None;
    while !shared.shutdown.is_cancelled() {
        let mut conn = shared.pool.get().await?;
        let copying = conn
            .transaction(async |conn| copy_next(conn, shared, topic, &mut producer).await)
            .await?;
        if let Some(end) = copying {
            return Ok(end);
        }
    }
    Ok(Copying::Complete)
}

/// Copies the next dead letter, and prevents other replicas from doing so until the transaction ends. Does not lock
/// the row while it waits for Kafka: a deletion must be able to erase it. Returns `None` after a copy.
async fn copy_next(
    conn: &mut AsyncPgConnection,
    shared: &Shared,
    topic: &str,
    producer: &mut Option<FutureProducer>,
) -> anyhow::Result<Option<Copying>> {
    let name = &shared.config.name;
    if !dead_letters::try_lock_copying(conn, name).await? {
        return Ok(Some(Copying::ByAnotherReplica));
    }
    let Some(dead_letter) = dead_letters::find_uncopied(conn, name).await? else {
        return Ok(Some(Copying::Complete));
    };
    // Created on demand: dead letters are rare.
    let producer = match producer {
        Some(producer) => producer,
        None => producer.insert(connect(&shared.config.brokers)?),
    };
    send(producer, topic, &dead_letter).await?;
    dead_letters::mark_in_topic(conn, dead_letter.summary.dead_letter_id).await?;
    Ok(None)
}

fn connect(brokers: &str) -> Result<FutureProducer, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", SEND_TIMEOUT_MS)
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
