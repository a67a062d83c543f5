//! Every authentication mechanism of a broker.

use anyhow::Result;
use devstack::{Record, WorkDir, eventually, read_topic};
use outbox_relay::{
    Level, check,
    config::{Config, KafkaProperties, KafkaSecurity, PasswordMechanism, Sasl, SinkKind},
};

use super::broker::{NEWCOMER, PASSWORD, PLAIN_PASSWORD, SecureBroker, USER};
use crate::{
    acl::{self, Allowed},
    for_each_sink,
    harness::{Session, Setup},
};

for_each_sink! {
    every_sasl_mechanism_authenticates,
    a_client_certificate_authenticates,
    the_documented_acls_are_sufficient,
}

/// A source that publishes to a secure broker.
pub(super) async fn setup(
    broker: &SecureBroker,
    brokers: &str,
    sink: SinkKind,
    security: KafkaSecurity,
) -> Result<Setup> {
    let mut setup = Setup::new("secure", sink).await?;
    let configs = [("cleanup.policy", "compact")];
    broker.kafka.create_topic(&setup.topic, 3, &configs).await?;
    setup.brokers = brokers.to_owned();
    setup.security = security;
    Ok(setup)
}

/// Waits for this many records in the topic, read through the plaintext listener.
pub(super) async fn records(
    broker: &SecureBroker,
    setup: &Setup,
    at_least: usize,
) -> Result<Vec<Record>> {
    eventually(&format!("{at_least} records"), async || {
        let records = read_topic(broker.kafka.brokers(), &setup.topic).await?;
        Ok((records.len() >= at_least).then_some(records))
    })
    .await
}

pub(super) async fn publish_one(setup: &Setup) -> Result<()> {
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    let records = records(SecureBroker::shared(), setup, 1).await?;
    assert_eq!(records.len(), 1, "{records:?}");
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    let found = check(&setup.config()?).await;
    let wrong = found.iter().find(|found| found.level == Level::Fail);
    assert_eq!(wrong, None);
    Ok(())
}

async fn every_sasl_mechanism_authenticates(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    for (mechanism, password) in [
        (PasswordMechanism::Plain, PLAIN_PASSWORD),
        (PasswordMechanism::ScramSha256, PASSWORD),
        (PasswordMechanism::ScramSha512, PASSWORD),
    ] {
        let security = broker.sasl(mechanism, password);
        let setup = setup(broker, &broker.ports.sasl, sink, security).await?;
        publish_one(&setup).await?;
    }
    Ok(())
}

/// With the sink `rdkafka`, `kafka.properties` enables mechanisms of librdkafka.
#[tokio::test(flavor = "multi_thread")]
async fn a_mechanism_of_librdkafka_authenticates() -> Result<()> {
    let broker = SecureBroker::shared();
    let security = broker.tls();
    let mut setup = setup(broker, &broker.ports.sasl, SinkKind::RdKafka, security).await?;
    setup.properties = properties(&format!(
        "sasl.mechanisms = 'OAUTHBEARER'
         sasl.oauthbearer.config = 'principal={USER}'
         enable.sasl.oauthbearer.unsecure.jwt = true"
    ))?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    let records = records(broker, &setup, 1).await?;
    assert_eq!(records.len(), 1, "{records:?}");
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    // `check` uses the native client, which does not have these properties and must not report a failure.
    let found = check(&setup.config()?).await;
    let of_kafka = found.iter().filter(|found| found.subject == "kafka");
    let levels: Vec<_> = of_kafka.map(|found| found.level).collect();
    assert_eq!(levels, [Level::Unknown], "{found:?}");
    Ok(())
}

fn properties(lines: &str) -> Result<KafkaProperties> {
    let config = format!(
        "[[source]]\nname = 'test'\ndatabase_url = 'postgres://localhost/test'\n\
         [kafka]\nbrokers = 'localhost:9092'\nsink = 'rdkafka'\n[kafka.properties]\n{lines}"
    );
    let work_dir = WorkDir::new()?;
    let path = work_dir.write("outbox-relay.toml", &config)?;
    Ok(Config::load(&path)?.kafka.properties)
}

async fn a_client_certificate_authenticates(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let security = broker.certificate();
    let setup = setup(broker, &broker.ports.certificate, sink, security).await?;
    publish_one(&setup).await
}

async fn the_documented_acls_are_sufficient(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let mut security = broker.scram();
    if let Some(Sasl::Password { username, .. }) = &mut security.sasl {
        *username = NEWCOMER.into();
    }
    let setup = setup(broker, &broker.ports.sasl, sink, security).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    let text = relay.wait_for_state(503, "failed to produce to ").await?;
    // Without Write on any topic, there is no producer id either.
    let words = [&*setup.topic, "allow Write on the topics"];
    assert!(words.iter().any(|words| text.contains(words)), "{text}");
    let allowed = [
        Allowed::topic(&setup.topic),
        Allowed::transactional_id("outbox-relay."),
    ];
    let principal = format!("User:{NEWCOMER}");
    acl::allow(broker.kafka.brokers(), &principal, &allowed).await?;
    records(broker, &setup, 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}
