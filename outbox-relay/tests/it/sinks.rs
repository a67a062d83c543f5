//! The contract that every sink must fulfill.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Kafka, Record as Stored, WAIT_TIMEOUT, WorkDir};
use outbox_relay::{
    clock::Clock,
    config::{Compression, KafkaConfig, KafkaProperties, KafkaSecurity, SinkKind},
    kafka::{
        Acknowledgements, Headers, KafkaSink, RdKafkaSink, Record, Sink, SinkError, SinkOptions,
    },
    postgres::{Cursor, Lease},
};

use crate::{for_each_sink, secure::broker::SecureBroker};

for_each_sink! {
    a_failed_sink_sends_no_record_after_one_it_dropped,
}

/// Generates a test for every function, sink, and kind of connection.
macro_rules! for_each_variant {
    ($($test:ident,)*) => {
        for_each_variant!(@variant plain_kafka, Variant::plain(SinkKind::Kafka), $($test,)*);
        for_each_variant!(@variant plain_rdkafka, Variant::plain(SinkKind::RdKafka), $($test,)*);
        for_each_variant!(@variant secure_kafka, Variant::secure(SinkKind::Kafka), $($test,)*);
        for_each_variant!(@variant secure_rdkafka, Variant::secure(SinkKind::RdKafka), $($test,)*);
    };
    (@variant $name:ident, $variant:expr, $($test:ident,)*) => {
        mod $name {
            use super::{SinkKind, Variant};
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() -> anyhow::Result<()> {
                super::$test($variant).await
            })*
        }
    };
}

for_each_variant! {
    records_arrive_unchanged_and_in_order,
    both_sinks_agree_on_the_partition_of_a_key,
    large_and_small_records_are_published_together,
    compressed_records_arrive_unchanged,
    a_missing_topic_is_rejected_by_name,
    nothing_is_sent_without_the_lease,
}

/// The number of leaders replaced while they hold a record.
const TAKEOVERS: u32 = 100;
/// The versions of one key sent while a broker is suspended.
const VERSIONS: u32 = 40;

/// A sink, and the security of its connection.
#[derive(Clone, Copy)]
struct Variant {
    sink: SinkKind,
    /// With TLS and SCRAM.
    is_secure: bool,
}

impl Variant {
    const fn plain(sink: SinkKind) -> Self {
        Self {
            sink,
            is_secure: false,
        }
    }

    const fn secure(sink: SinkKind) -> Self {
        Self {
            sink,
            is_secure: true,
        }
    }
}

/// Opens sinks that write to the test's own topic.
struct Setup {
    kind: SinkKind,
    topic: String,
    /// Used to create and read topics.
    plain_brokers: String,
    options: SinkOptions,
}

impl Setup {
    async fn new(test: &str, kind: SinkKind) -> Result<Self> {
        Self::for_variant(test, Variant::plain(kind)).await
    }

    async fn for_variant(test: &str, variant: Variant) -> Result<Self> {
        let (kind, topic) = (variant.sink, Addresses::unique_name(test));
        let (brokers, plain_brokers, security) = if variant.is_secure {
            let broker = SecureBroker::shared();
            broker.kafka.create_topic(&topic, 4, &[]).await?;
            (&*broker.ports.sasl, broker.kafka.brokers(), broker.scram())
        } else {
            let shared = Addresses::shared();
            shared.create_topic(&topic, 4).await?;
            (shared.brokers(), shared.brokers(), KafkaSecurity::default())
        };
        let kafka = KafkaConfig {
            brokers: brokers.to_owned(),
            sink: kind,
            compression: Compression::None,
            delivery_timeout: Duration::from_secs(5),
            max_in_flight_records: 1_000,
            max_in_flight_bytes: 8 << 20,
            max_record_bytes: 1_000_000,
            security,
            properties: KafkaProperties::default(),
        };
        let options = SinkOptions {
            max_in_flight: kafka.max_in_flight_records,
            kafka,
            maintenance_interval: Duration::from_millis(50),
            producer_name: topic.clone(),
            start: Cursor::beginning(),
            clock: Clock::default(),
        };
        Ok(Self {
            kind,
            topic,
            plain_brokers: plain_brokers.to_owned(),
            options,
        })
    }

    async fn open(&self, lease: Lease) -> Result<AnySink> {
        let options = self.options.clone();
        Ok(match self.kind {
            SinkKind::Kafka => AnySink::Kafka(KafkaSink::open(options, lease).await?.into()),
            SinkKind::RdKafka => AnySink::RdKafka(RdKafkaSink::open(options, lease).await?.into()),
        })
    }

    /// Sends `each` records per key, and waits for the acknowledgements.
    async fn send(&self, keys: &[&str], each: i64) -> Result<Vec<Stored>> {
        let mut sink = self.open(unlimited()).await?;
        for version in 1..=each {
            for key in keys {
                sink.send(&self.topic, key, Some(version.to_string().as_bytes()))
                    .await?;
            }
        }
        sink.deliver().await?;
        self.read().await
    }

    /// Reads all records of the topic.
    async fn read(&self) -> Result<Vec<Stored>> {
        devstack::read_topic(&self.plain_brokers, &self.topic).await
    }
}

/// A lease that does not expire during a test.
fn unlimited() -> Lease {
    Lease::new(Duration::MAX)
}

enum AnySink {
    Kafka(Box<KafkaSink>),
    RdKafka(Box<RdKafkaSink>),
}

impl AnySink {
    async fn send(
        &mut self,
        topic: &str,
        key: &str,
        payload: Option<&[u8]>,
    ) -> Result<(), SinkError> {
        let record = Record {
            topic,
            key: key.as_bytes(),
            payload,
            headers: &Headers::default(),
            partition: None,
            timestamp_ms: None,
        };
        match self {
            Self::Kafka(sink) => sink.send(&record).await,
            Self::RdKafka(sink) => sink.send(&record).await,
        }
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        match self {
            Self::Kafka(sink) => sink.flush().await,
            Self::RdKafka(sink) => sink.flush().await,
        }
    }

    fn acknowledgements(&self) -> &Acknowledgements {
        match self {
            Self::Kafka(sink) => sink.acknowledgements(),
            Self::RdKafka(sink) => sink.acknowledgements(),
        }
    }

    /// Flushes the sink, and waits for all acknowledgements.
    async fn deliver(&mut self) -> Result<(), SinkError> {
        self.flush().await?;
        let in_flight = self.acknowledgements();
        in_flight.wait_until_empty().await?;
        assert_eq!(in_flight.acknowledged(), in_flight.sent());
        Ok(())
    }
}

async fn records_arrive_unchanged_and_in_order(variant: Variant) -> Result<()> {
    let setup = Setup::for_variant("ordered", variant).await?;
    let keys: Vec<String> = (0..40).map(|key| format!("key-{key}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    // More than the limit on records in flight.
    let stored = setup.send(&keys, 200).await?;
    assert_eq!(stored.len(), 8_000);
    let mut newest = HashMap::new();
    for record in &stored {
        let text = std::str::from_utf8(record.payload.as_deref().context("a payload")?)?;
        let version: i64 = text.parse()?;
        let before = newest.insert(&record.key, version).unwrap_or(0);
        assert_eq!(version, before + 1, "{record:?}");
    }
    // A tombstone is a record without a value, not one with an empty value.
    let mut sink = setup.open(unlimited()).await?;
    sink.send(&setup.topic, "gone", None).await?;
    sink.send(&setup.topic, "empty", Some(b"")).await?;
    sink.deliver().await?;
    let stored = setup.read().await?;
    let payload = |key| {
        let record = stored.iter().find(|record| record.key == key);
        record.map(|record| record.payload.clone())
    };
    assert_eq!(payload("gone"), Some(None));
    assert_eq!(payload("empty"), Some(Some(Vec::new())));
    Ok(())
}

async fn both_sinks_agree_on_the_partition_of_a_key(variant: Variant) -> Result<()> {
    let other = match variant.sink {
        SinkKind::Kafka => SinkKind::RdKafka,
        SinkKind::RdKafka => SinkKind::Kafka,
    };
    let mut setup = Setup::for_variant("partitions", variant).await?;
    let keys: Vec<String> = (0..200)
        .map(|key| "k".repeat(key % 9) + &key.to_string())
        .collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    setup.send(&keys, 1).await?;
    setup.kind = other;
    let mut partitions = HashMap::new();
    for record in setup.send(&keys, 1).await? {
        let partition = *partitions.entry(record.key).or_insert(record.partition);
        assert_eq!(partition, record.partition);
    }
    assert_eq!(partitions.len(), keys.len());
    Ok(())
}

async fn large_and_small_records_are_published_together(variant: Variant) -> Result<()> {
    let setup = Setup::for_variant("large", variant).await?;
    let mut sink = setup.open(unlimited()).await?;
    let lengths = [10, 900_000, 20, 400_000, 400_000, 400_000, 30];
    for (index, length) in lengths.into_iter().enumerate() {
        let key = (index % 2).to_string();
        sink.send(&setup.topic, &key, Some(&vec![b'x'; length]))
            .await?;
    }
    sink.deliver().await?;
    let stored = setup.read().await?;
    for (key, remainder) in [("0", 0), ("1", 1)] {
        let of_key = stored.iter().filter(|record| record.key == key);
        let found: Vec<usize> = of_key
            .map(|r| r.payload.as_ref().map_or(0, Vec::len))
            .collect();
        let wanted: Vec<usize> = lengths.into_iter().skip(remainder).step_by(2).collect();
        assert_eq!(found, wanted);
    }
    Ok(())
}

/// Read by librdkafka, which decompresses with the codec that the batch names.
async fn compressed_records_arrive_unchanged(variant: Variant) -> Result<()> {
    let payload = |n: usize| format!(r#"{{"number":{n},"text":"{}"}}"#, "words ".repeat(n % 300));
    for codec in [Compression::Gzip, Compression::Lz4, Compression::Zstd] {
        let mut setup = Setup::for_variant("compressed", variant).await?;
        setup.options.kafka.compression = codec;
        let mut sink = setup.open(unlimited()).await?;
        for n in 0..2_000 {
            sink.send(&setup.topic, "key", Some(payload(n).as_bytes()))
                .await?;
        }
        sink.deliver().await?;
        let stored = setup.read().await?;
        let stored: Vec<_> = stored
            .into_iter()
            .filter_map(|record| record.payload)
            .collect();
        assert_eq!(stored.len(), 2_000);
        for (n, stored) in stored.iter().enumerate() {
            assert_eq!(stored, payload(n).as_bytes(), "{codec:?}");
        }
    }
    Ok(())
}

async fn a_missing_topic_is_rejected_by_name(variant: Variant) -> Result<()> {
    let setup = Setup::for_variant("missing", variant).await?;
    let mut sink = setup.open(unlimited()).await?;
    let sent = sink.send("missing.topic", "a", Some(b"1")).await;
    let rejected = match sent {
        Ok(()) => sink.deliver().await,
        rejected => rejected,
    };
    let err = rejected.err().context("the record was accepted")?;
    assert!(
        matches!(&err, SinkError::Rejected { topic, .. } if topic == "missing.topic"),
        "{err}"
    );
    Ok(())
}

async fn nothing_is_sent_without_the_lease(variant: Variant) -> Result<()> {
    let setup = Setup::for_variant("lease", variant).await?;
    let mut sink = setup.open(Lease::new(Duration::ZERO)).await?;
    let sending = async {
        sink.send(&setup.topic, "a", Some(b"1")).await?;
        sink.deliver().await
    };
    let sent = tokio::time::timeout(Duration::from_secs(1), sending).await;
    assert!(sent.is_err(), "it was sent");
    assert_eq!(setup.read().await?, []);
    Ok(())
}

/// After a sink drops a record, it must not send later ones: its successor sends all of them again, and old versions would
/// follow new ones.
async fn a_failed_sink_sends_no_record_after_one_it_dropped(kind: SinkKind) -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let kafka = Kafka::start(&work_dir).await?;
    let mut setup = Setup::new("given_up", kind).await?;
    setup.options.kafka.brokers = kafka.brokers().to_owned();
    setup.options.kafka.delivery_timeout = Duration::from_secs(2);
    kafka.create_topic(&setup.topic, 1, &[]).await?;
    let mut sink = setup.open(unlimited()).await?;
    sink.send(&setup.topic, "warm", Some(b"0")).await?;
    sink.deliver().await?;
    kafka.process.suspend();
    let in_flight = sink.acknowledgements().clone();
    let sending = async {
        // Spread over almost the delivery timeout, so that some records expire before others.
        for version in 1..=VERSIONS {
            let payload = version.to_string();
            sink.send(&setup.topic, "a", Some(payload.as_bytes()))
                .await?;
            sink.flush().await?;
            tokio::time::sleep(Duration::from_millis(1_800) / VERSIONS).await;
        }
        Ok::<_, SinkError>(in_flight.failed().await)
    };
    let failed = tokio::select! {
        sent = sending => sent.unwrap_or_else(|err| err),
        failed = in_flight.failed() => failed,
    };
    assert!(matches!(failed, SinkError::Unavailable(_)), "{failed}");
    drop(sink);
    kafka.process.resume();

    let mut successor = setup.open(unlimited()).await?;
    for version in 1..=VERSIONS {
        let payload = version.to_string();
        successor
            .send(&setup.topic, "a", Some(payload.as_bytes()))
            .await?;
    }
    successor.deliver().await?;
    let mut newest = 0;
    for record in devstack::read_topic(kafka.brokers(), &setup.topic).await? {
        let text = String::from_utf8(record.payload.context("a payload")?)?;
        let version: u32 = text.parse()?;
        assert!(version <= newest + 1, "{version} follows {newest}");
        newest = newest.max(version);
    }
    assert_eq!(newest, VERSIONS);
    kafka.process.stop().await;
    Ok(())
}

/// A new producer id does not fence an earlier one, for example after the last epoch. Then the relay waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_producer_id_fences_nobody() -> Result<()> {
    let setup = Setup::new("new_producer", SinkKind::Kafka).await?;
    for has_fencing in [false, true, true] {
        let AnySink::Kafka(sink) = setup.open(unlimited()).await? else {
            unreachable!("opened as such")
        };
        assert_eq!(sink.has_fencing(), has_fencing);
    }
    Ok(())
}

/// A paused leader must not write an old version after a newer one.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_fences_a_predecessor() -> Result<()> {
    let setup = Setup::new("fenced", SinkKind::Kafka).await?;
    let mut old = setup.open(unlimited()).await?;
    old.send(&setup.topic, "a", Some(b"1")).await?;
    old.deliver().await?;
    let mut new = setup.open(unlimited()).await?;
    // Harmless where the successor has not written yet: it will send the same records again.
    old.send(&setup.topic, "a", Some(b"2")).await?;
    old.deliver().await?;
    new.send(&setup.topic, "a", Some(b"2")).await?;
    new.send(&setup.topic, "a", Some(b"3")).await?;
    new.deliver().await?;
    old.send(&setup.topic, "a", Some(b"2")).await?;
    assert_eq!(old.deliver().await, Err(SinkError::Fenced));
    new.send(&setup.topic, "a", Some(b"4")).await?;
    new.deliver().await?;
    let stored = Addresses::shared().read_topic(&setup.topic).await?;
    let payloads: Vec<_> = stored
        .into_iter()
        .filter_map(|record| record.payload)
        .collect();
    assert_eq!(payloads, [b"1", b"2", b"2", b"3", b"4"]);
    Ok(())
}

/// Repeats the takeover many times. The predecessor keeps its lease, which would otherwise stop it.
#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_never_writes_after_its_successor() -> Result<()> {
    let setup = Setup::new("takeovers", SinkKind::Kafka).await?;
    let mut sink = setup.open(unlimited()).await?;
    let mut rejected = 0;
    for round in 0..TAKEOVERS {
        // Cycles through all partitions.
        let key = format!("key-{}", round % 7);
        let versions = |turn: u32| (2 * round + turn).to_string().into_bytes();
        let mut predecessor = sink;
        predecessor
            .send(&setup.topic, &key, Some(&versions(0)))
            .await?;
        sink = setup.open(unlimited()).await?;
        for turn in 0..2 {
            sink.send(&setup.topic, &key, Some(&versions(turn))).await?;
        }
        sink.deliver().await?;
        rejected += u32::from(predecessor.deliver().await == Err(SinkError::Fenced));
    }
    assert_eq!(rejected, TAKEOVERS);
    let stored = Addresses::shared().read_topic(&setup.topic).await?;
    assert_eq!(stored.len(), 2 * TAKEOVERS as usize);
    let mut newest = HashMap::new();
    for record in stored {
        let text = String::from_utf8(record.payload.context("a payload")?)?;
        let version: u32 = text.parse()?;
        let before = newest.insert(record.key, version);
        assert!(before < Some(version), "{before:?}, then {version}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_sink_detects_a_dead_broker() -> Result<()> {
    let servers = devstack::Servers::start(&[]).await?;
    let mut setup = Setup::new("idle", SinkKind::Kafka).await?;
    setup.options.kafka.brokers = servers.addresses().brokers().to_owned();
    servers.addresses().create_topic(&setup.topic, 1).await?;
    let mut sink = setup.open(unlimited()).await?;
    sink.send(&setup.topic, "a", Some(b"1")).await?;
    sink.deliver().await?;
    servers.kafka.process.kill();
    let failed = tokio::time::timeout(WAIT_TIMEOUT, sink.acknowledgements().failed()).await?;
    assert!(matches!(failed, SinkError::Unavailable(_)), "{failed}");
    servers.stop().await;
    Ok(())
}

/// A broker lists several topics in any order.
#[tokio::test(flavor = "multi_thread")]
async fn many_unchanged_topics_are_not_reported_as_changed() -> Result<()> {
    let mut setup = Setup::new("many", SinkKind::Kafka).await?;
    setup.options.maintenance_interval = Duration::ZERO;
    let AnySink::Kafka(mut sink) = setup.open(unlimited()).await? else {
        unreachable!("opened as such")
    };
    for partitions in 1..=8 {
        let topic = Addresses::unique_name("many");
        Addresses::shared().create_topic(&topic, partitions).await?;
        let record = Record {
            topic: &topic,
            key: b"a",
            payload: None,
            headers: &Headers::default(),
            partition: None,
            timestamp_ms: None,
        };
        sink.send(&record).await?;
        sink.flush().await?;
        sink.run_maintenance().await?;
    }
    Ok(())
}

/// A broker without state of a producer accepts any sequence, also that of the second batch after a failure of the first.
/// Therefore nothing may follow a partition's first batch before its response.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_batch_of_a_partition_is_sent_alone() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let kafka = Kafka::start(&work_dir).await?;
    let mut setup = Setup::new("alone", SinkKind::Kafka).await?;
    setup.options.kafka.brokers = kafka.brokers().to_owned();
    setup.options.kafka.delivery_timeout = WAIT_TIMEOUT;
    let (known, new) = ("known", "new");
    for topic in [known, new] {
        kafka.create_topic(topic, 1, &[]).await?;
    }
    let mut sink = setup.open(unlimited()).await?;
    // The first batch opens the connection, and the first record of a topic fetches its metadata.
    sink.send(known, "a", Some(b"1")).await?;
    sink.deliver().await?;
    sink.send(new, "a", Some(b"1")).await?;

    kafka.process.suspend();
    sink.flush().await?;
    sink.send(new, "a", Some(b"2")).await?;
    {
        let mut flushing = pin!(sink.flush());
        let second = tokio::time::timeout(Duration::from_secs(1), &mut flushing).await;
        assert!(
            second.is_err(),
            "the second batch was sent before the response to the first"
        );
        kafka.process.resume();
        flushing.await?;
    }
    sink.deliver().await?;

    kafka.process.suspend();
    for version in [b"3", b"4"] {
        sink.send(new, "a", Some(version)).await?;
        sink.flush().await?;
    }
    kafka.process.resume();
    sink.deliver().await?;
    kafka.process.stop().await;
    Ok(())
}

/// Brokers close idle connections, after ten minutes by default. This must not fail the sink, which may have other
/// brokers.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_while_idle_is_reopened() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    // Longer than the pause between two requests on a busy machine.
    let kafka = Kafka::start_with_settings(&work_dir, &["connections.max.idle.ms=2000"]).await?;
    let mut setup = Setup::new("idle_long", SinkKind::Kafka).await?;
    setup.options.kafka.brokers = kafka.brokers().to_owned();
    kafka.create_topic(&setup.topic, 1, &[]).await?;
    let mut sink = setup.open(unlimited()).await?;
    for _ in 0..2 {
        sink.send(&setup.topic, "a", Some(b"1")).await?;
        sink.deliver().await?;
        let failed =
            tokio::time::timeout(Duration::from_secs(5), sink.acknowledgements().failed()).await;
        assert!(failed.is_err(), "{failed:?}");
    }
    kafka.process.stop().await;
    Ok(())
}

/// Keys may then belong to other partitions. The relay opens a new sink.
#[tokio::test(flavor = "multi_thread")]
async fn added_partitions_are_detected() -> Result<()> {
    let setup = Setup::new("grown", SinkKind::Kafka).await?;
    let mut sink = setup.open(unlimited()).await?;
    sink.send(&setup.topic, "a", Some(b"1")).await?;
    sink.deliver().await?;
    Addresses::shared().add_partitions(&setup.topic, 6).await?;
    let AnySink::Kafka(mut sink) = sink else {
        unreachable!("opened as such")
    };
    let maintaining = async {
        loop {
            if let Err(err) = sink.run_maintenance().await {
                break err;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let failure = tokio::time::timeout(WAIT_TIMEOUT, maintaining).await?;
    let text = format!(
        "partition count of topic {} changed from 4 to 6",
        setup.topic
    );
    assert_eq!(failure, SinkError::Unavailable(text));
    // A new sink uses all partitions.
    let keys: Vec<String> = (0..60).map(|key| key.to_string()).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let stored = setup.send(&keys, 1).await?;
    assert!(stored.iter().any(|record| record.partition == 5));
    Ok(())
}
