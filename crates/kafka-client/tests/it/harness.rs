//! Connects to the brokers of a test.

use std::time::Duration;

use anyhow::Result;
use kafka_client::{Cluster, Error, Hints, Options, Security, TokenHints};
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};

const TIMEOUT: Duration = Duration::from_secs(5);
const HINTS: Hints = Hints {
    add_tls: "add TLS",
    remove_tls: "remove TLS",
    closed_early: "check TLS and SASL",
    remove_sasl: "remove SASL",
    mechanism: "the mechanism",
    credentials: "check the credentials",
    tokens: TokenHints {
        file: "renew the token",
        client_credentials: "check the client",
        endpoint: "check the URL",
        certificates: tls::Settings {
            ca: "the endpoint's CA",
            address: "the endpoint",
            identity: "no certificate",
        },
    },
    old_broker: "use a newer Kafka",
    certificates: tls::Settings {
        ca: "the CA",
        address: "the brokers",
        identity: "the certificate",
    },
};

pub(crate) async fn connect(brokers: &str) -> Result<Cluster, Error> {
    connect_with(brokers, Security::default()).await
}

pub(crate) async fn connect_with(brokers: &str, security: Security) -> Result<Cluster, Error> {
    Cluster::connect(brokers, options(security)).await
}

pub(crate) fn options(security: Security) -> Options {
    Options {
        client_id: "kafka-client-test",
        security,
        timeout: TIMEOUT,
        required_versions: &[],
        hints: &HINTS,
    }
}

/// Writes this many records to partition 0, and waits until all in-sync replicas have them.
pub(crate) async fn write_records(brokers: &str, topic: &str, count: usize) -> Result<()> {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    for _ in 0..count {
        let record = FutureRecord::to(topic).partition(0).key("k").payload("v");
        let sent = producer.send(record, Timeout::After(TIMEOUT)).await;
        sent.map_err(|(err, _)| err)?;
    }
    Ok(())
}
