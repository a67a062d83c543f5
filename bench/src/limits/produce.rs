use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{
        BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext,
        ThreadedProducer,
    },
};

use super::Limit;

#[derive(Args, Clone, Debug)]
pub(crate) struct ProduceOptions {
    #[arg(long, env)]
    brokers: String,
    #[arg(long, env)]
    topic: String,
    #[arg(long, env)]
    rows: u64,
    #[arg(long, env)]
    payload_bytes: usize,
}

/// The relay's default limit of records in flight.
const MAX_IN_FLIGHT: u64 = 20_000;
const PAUSE: Duration = Duration::from_micros(200);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Produces records like those of the backlog with librdkafka and the relay's settings.
pub(crate) async fn produce(options: ProduceOptions) -> Result<()> {
    tokio::task::spawn_blocking(move || produce_blocking(&options)).await?
}

fn produce_blocking(options: &ProduceOptions) -> Result<()> {
    let deliveries = Deliveries::default();
    let producer: ThreadedProducer<Deliveries> = ClientConfig::new()
        .set("bootstrap.servers", &options.brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "0.2")
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "32768")
        .create_with_context(deliveries.clone())?;
    producer.client().fetch_metadata(None, TIMEOUT)?;
    let payload = vec![b'x'; options.payload_bytes];
    let started_at = Instant::now();
    for number in 0..options.rows {
        while number - deliveries.acknowledged() >= MAX_IN_FLIGHT {
            std::thread::sleep(PAUSE);
        }
        send(&producer, &options.topic, number, &payload)?;
    }
    producer.flush(TIMEOUT).context("flush timed out")?;
    let failed = deliveries.failed.load(Ordering::Relaxed);
    ensure!(failed == 0, "{failed} records were rejected");
    let seconds = started_at.elapsed().as_secs_f64();
    Limit::print(deliveries.acknowledged(), seconds)
}

/// Sends a record with the eight headers that the relay sets for a row with a trace.
fn send(
    producer: &ThreadedProducer<Deliveries>,
    topic: &str,
    number: u64,
    payload: &[u8],
) -> Result<()> {
    let id = format!("00000000-0000-4000-8000-{:012x}", number % 10_000);
    let version = (number / 10_000).to_string();
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_source", "/bench"),
        ("ce_type", "order_created"),
        ("ce_time", "2026-01-02T03:04:05.678901Z"),
        ("ce_aggregateversion", &version),
        ("content-type", "application/json"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
    ];
    let mut own_headers = OwnedHeaders::new_with_capacity(headers.len());
    for (key, value) in headers {
        let value = Some(value);
        own_headers = own_headers.insert(Header { key, value });
    }
    let mut record = BaseRecord::to(topic)
        .key(&id)
        .payload(payload)
        .headers(own_headers);
    let started_at = Instant::now();
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                if started_at.elapsed() < TIMEOUT =>
            {
                record = again;
                std::thread::sleep(PAUSE);
            }
            Err((err, _)) => return Err(err.into()),
        }
    }
}

/// Counts acknowledged and failed records.
#[derive(Clone, Default)]
struct Deliveries {
    taken: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl Deliveries {
    fn acknowledged(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext<NoCustomPartitioner> for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let count = match result {
            Ok(_) => &self.taken,
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}
