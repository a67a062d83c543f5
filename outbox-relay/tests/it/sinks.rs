//! The contract of a sink, which each of them has to keep.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result};
use devstack::{Addresses, PATIENCE, Record as Stored};
use outbox_relay::{
    config::{KafkaConfig, SinkKind},
    lease::Lease,
    route::{Headers, Record},
    sink::{KafkaSink, RdKafkaSink, Sink, SinkError, SinkOptions},
};

use crate::for_each_sink;

for_each_sink! {
    records_arrive_as_they_are_and_in_order,
    both_sinks_agree_on_the_partition_of_a_key,
    large_records_go_out_beside_small_ones,
    a_topic_that_is_not_there_is_refused_by_name,
    nothing_is_sent_without_the_lease,
}

/// What a test needs to open sinks that write to a topic of its own.
struct Setup {
    kind: SinkKind,
    topic: String,
    options: SinkOptions,
}

impl Setup {
    async fn new(test: &str, kind: SinkKind) -> Result<Self> {
        let topic = Addresses::unique_name(test);
        Addresses::shared().create_topic(&topic, 4).await?;
        let kafka = KafkaConfig {
            brokers: Addresses::shared().brokers().to_owned(),
            sink: kind,
            delivery_timeout: Duration::from_secs(5),
            max_in_flight_records: 1_000,
            max_in_flight_bytes: 8 << 20,
            max_record_bytes: 1_000_000,
        };
        let options = SinkOptions {
            max_in_flight: kafka.max_in_flight_records,
            kafka,
            producer_name: topic.clone(),
        };
        Ok(Self {
            kind,
            topic,
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

    /// Sends so many records of each key, and waits for the acknowledgements.
    async fn send(&self, keys: &[&str], each: i64) -> Result<Vec<Stored>> {
        let mut sink = self.open(unlimited()).await?;
        for version in 1..=each {
            for key in keys {
                sink.send(&self.topic, key, Some(version.to_string().as_bytes()))
                    .await?;
            }
        }
        sink.deliver().await?;
        Addresses::shared().read_topic(&self.topic).await
    }
}

/// A lease that does not run out within a test.
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
        };
        match self {
            Self::Kafka(sink) => sink.send(&record).await,
            Self::RdKafka(sink) => sink.send(&record).await,
        }
    }

    /// Sends what is still in the sink, and waits until all is acknowledged.
    async fn deliver(&mut self) -> Result<(), SinkError> {
        let in_flight = match self {
            Self::Kafka(sink) => {
                sink.flush().await?;
                sink.in_flight()
            }
            Self::RdKafka(sink) => {
                sink.flush().await?;
                sink.in_flight()
            }
        };
        in_flight.wait_until_empty().await?;
        assert_eq!(in_flight.acknowledged(), in_flight.sent());
        Ok(())
    }
}

async fn records_arrive_as_they_are_and_in_order(kind: SinkKind) -> Result<()> {
    let setup = Setup::new("ordered", kind).await?;
    let keys: Vec<String> = (0..40).map(|key| format!("key-{key}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    // More than may be in flight at once.
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
    let stored = Addresses::shared().read_topic(&setup.topic).await?;
    let payload = |key| {
        let record = stored.iter().find(|record| record.key == key);
        record.map(|record| record.payload.clone())
    };
    assert_eq!(payload("gone"), Some(None));
    assert_eq!(payload("empty"), Some(Some(Vec::new())));
    Ok(())
}

async fn both_sinks_agree_on_the_partition_of_a_key(kind: SinkKind) -> Result<()> {
    let other = match kind {
        SinkKind::Kafka => SinkKind::RdKafka,
        SinkKind::RdKafka => SinkKind::Kafka,
    };
    let mut setup = Setup::new("partitions", kind).await?;
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

async fn large_records_go_out_beside_small_ones(kind: SinkKind) -> Result<()> {
    let setup = Setup::new("large", kind).await?;
    let mut sink = setup.open(unlimited()).await?;
    let lengths = [10, 900_000, 20, 400_000, 400_000, 400_000, 30];
    for (index, length) in lengths.into_iter().enumerate() {
        let key = (index % 2).to_string();
        sink.send(&setup.topic, &key, Some(&vec![b'x'; length]))
            .await?;
    }
    sink.deliver().await?;
    let stored = Addresses::shared().read_topic(&setup.topic).await?;
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

async fn a_topic_that_is_not_there_is_refused_by_name(kind: SinkKind) -> Result<()> {
    let setup = Setup::new("missing", kind).await?;
    let mut sink = setup.open(unlimited()).await?;
    let sent = sink.send("nobody.made.this", "a", Some(b"1")).await;
    let refused = match sent {
        Ok(()) => sink.deliver().await,
        refused => refused,
    };
    let err = refused.err().context("it was taken")?;
    assert!(
        matches!(&err, SinkError::Refused { topic, .. } if topic == "nobody.made.this"),
        "{err}"
    );
    Ok(())
}

async fn nothing_is_sent_without_the_lease(kind: SinkKind) -> Result<()> {
    let setup = Setup::new("lease", kind).await?;
    let mut sink = setup.open(Lease::new(Duration::ZERO)).await?;
    let sending = async {
        sink.send(&setup.topic, "a", Some(b"1")).await?;
        sink.deliver().await
    };
    let sent = tokio::time::timeout(Duration::from_secs(1), sending).await;
    assert!(sent.is_err(), "it was sent");
    assert_eq!(Addresses::shared().read_topic(&setup.topic).await?, []);
    Ok(())
}

/// A paused leader must not put an old version behind a newer one. Once a successor has written to
/// a partition, the broker refuses the predecessor there.
#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_is_fenced_off_by_the_broker() -> Result<()> {
    let setup = Setup::new("fenced", SinkKind::Kafka).await?;
    let mut old = setup.open(unlimited()).await?;
    old.send(&setup.topic, "a", Some(b"1")).await?;
    old.deliver().await?;
    let mut new = setup.open(unlimited()).await?;
    // Where the successor has not written yet it is no harm: it will send the same, and more.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_is_noticed_by_an_idle_sink() -> Result<()> {
    let servers = devstack::Servers::start(&[]).await?;
    let mut setup = Setup::new("idle", SinkKind::Kafka).await?;
    setup.options.kafka.brokers = servers.addresses().brokers().to_owned();
    servers.addresses().create_topic(&setup.topic, 1).await?;
    let mut sink = setup.open(unlimited()).await?;
    sink.send(&setup.topic, "a", Some(b"1")).await?;
    sink.deliver().await?;
    servers.kafka.process.kill();
    let AnySink::Kafka(sink) = &sink else {
        unreachable!("opened as such")
    };
    let failed = tokio::time::timeout(PATIENCE, sink.in_flight().failed()).await?;
    assert!(matches!(failed, SinkError::Unavailable(_)), "{failed}");
    servers.stop().await;
    Ok(())
}
