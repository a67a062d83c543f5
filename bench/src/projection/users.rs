//! Produces records of users like those of user-service and the relay.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};

type Producer = ThreadedProducer<DefaultProducerContext>;

const TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_micros(200);

/// Produces this number of users.
pub(super) async fn fill(brokers: String, topic: &'static str, records: u64) -> Result<()> {
    tokio::task::spawn_blocking(move || {
        let producer = producer(&brokers, "5")?;
        for number in 0..records {
            send(&producer, topic, number, "backlog", "Ada Lovelace")?;
        }
        producer.flush(TIMEOUT).context("flush timed out")
    })
    .await?
}

/// Produces `rate` users per second, each with the current time as its name. Returns their number.
pub(super) async fn send_steadily(
    brokers: String,
    topic: String,
    rate: u64,
    seconds: u64,
    what: &'static str,
) -> Result<u64> {
    tokio::task::spawn_blocking(move || {
        let producer = producer(&brokers, "0")?;
        let start = std::time::Instant::now();
        // Each run needs new user ids.
        let first = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_micros() as u64;
        for number in 0..rate * seconds {
            let due = Duration::from_secs(1).mul_f64(number as f64 / rate as f64);
            if let Some(rest) = due.checked_sub(start.elapsed()) {
                std::thread::sleep(rest);
            }
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            send(
                &producer,
                &topic,
                first + number,
                what,
                &now.as_micros().to_string(),
            )?;
        }
        producer.flush(TIMEOUT).context("flush timed out")?;
        Ok(rate * seconds)
    })
    .await?
}

fn producer(brokers: &str, linger_ms: &str) -> Result<Producer> {
    let producer: Producer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", linger_ms)
        .create()?;
    producer.client().fetch_metadata(None, TIMEOUT)?;
    Ok(producer)
}

fn send(producer: &Producer, topic: &str, number: u64, what: &str, name: &str) -> Result<()> {
    let id = format!("00000000-0000-7000-8000-{:012x}", number & 0xffff_ffff_ffff);
    let time = "2026-01-02T03:04:05.678901Z";
    let payload = format!(
        r#"{{"user_id":"{id}","email":"{what}{number}@example.com","name":"{name}","version":1,"deleted":false,"create_time":"{time}","update_time":"{time}"}}"#
    );
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_source", "/bench"),
        ("content-type", "application/json"),
        ("ce_id", &id),
        ("ce_type", "user_created"),
        ("ce_time", time),
        ("ce_aggregateversion", "1"),
    ];
    let mut own = OwnedHeaders::new_with_capacity(headers.len());
    for (key, value) in headers {
        let value = Some(value);
        own = own.insert(Header { key, value });
    }
    let mut record = BaseRecord::to(topic)
        .key(&id)
        .payload(&payload)
        .headers(own);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                record = again;
                std::thread::sleep(PAUSE);
            }
            Err((err, _)) => return Err(err.into()),
        }
    }
}
