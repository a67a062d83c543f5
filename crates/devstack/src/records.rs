use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Header, Headers as _, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};

const TIMEOUT: Duration = Duration::from_secs(20);
/// The limit on records in flight; the client's queue is bounded.
const MAX_IN_FLIGHT: usize = 10_000;

/// A record read from a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// CreateTime or LogAppendTime, depending on the topic.
    pub timestamp_ms: Option<i64>,
    pub key: String,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
}

impl Record {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns the aggregate version.
    ///
    /// # Panics
    /// If the header is missing or invalid.
    pub fn version(&self) -> i64 {
        let version = self
            .header("ce_aggregateversion")
            .and_then(|text| text.parse().ok());
        version.unwrap_or_else(|| panic!("no version in {self:?}"))
    }
}

/// A record to write. The client chooses partition and timestamp if they are `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRecord<'a> {
    pub partition: Option<i32>,
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, &'a str)],
}

/// Writes records, in order per partition, and waits for the acknowledgements.
///
/// # Errors
/// If the brokers reject a record or do not respond.
pub(crate) async fn write_records(
    brokers: &str,
    topic: &str,
    records: &[NewRecord<'_>],
) -> Result<()> {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", "0")
        // Like the relay: all records of a key must be in one partition, or compaction keeps several.
        .set("partitioner", "murmur2_random")
        .create()?;
    for records in records.chunks(MAX_IN_FLIGHT) {
        let mut answers = Vec::with_capacity(records.len());
        for record in records {
            let sent = producer.send_result(future_record(topic, record));
            answers.push(sent.map_err(|(err, _)| err)?);
        }
        for answer in answers {
            answer.await?.map_err(|(err, _)| err)?;
        }
    }
    // The drop blocks for up to 100 ms.
    tokio::task::spawn_blocking(|| drop(producer));
    Ok(())
}

fn future_record<'a>(topic: &'a str, new: &NewRecord<'a>) -> FutureRecord<'a, [u8], [u8]> {
    let mut headers = OwnedHeaders::new();
    for &(key, value) in new.headers {
        headers = headers.insert(Header {
            key,
            value: Some(value),
        });
    }
    let mut record = FutureRecord::to(topic).headers(headers);
    (record.key, record.payload) = (new.key, new.payload);
    (record.partition, record.timestamp) = (new.partition, new.timestamp_ms);
    record
}

/// Reads all records of a topic, in offset order per partition.
///
/// # Errors
/// If the topic does not exist, or the brokers do not respond.
pub async fn read_topic(brokers: &str, topic: &str) -> Result<Vec<Record>> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || read(&brokers, &topic)).await?
}

fn read(brokers: &str, topic: &str) -> Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "devstack-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let partitions = metadata
        .topics()
        .first()
        .context("the topic does not exist")?
        .partitions();
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let mut at_end = 0;
    let mut records = Vec::new();
    let started = Instant::now();
    while at_end < partitions.len() {
        match consumer.poll(TIMEOUT) {
            Some(Ok(message)) => records.push(record(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) => at_end += 1,
            // The broker was unreachable for a moment; the client reconnects.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
            ))) if started.elapsed() < TIMEOUT => {}
            Some(Err(err)) => return Err(err.into()),
            None => bail!("failed to read topic {topic} to its end within {TIMEOUT:?}"),
        }
    }
    Ok(records)
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = message
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter());
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: text(message.key().unwrap_or_default()),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: headers
            .map(|header| {
                (
                    header.key.to_owned(),
                    text(header.value.unwrap_or_default()),
                )
            })
            .collect(),
    }
}
