//! Every way into a broker.

use anyhow::Result;
use devstack::{Home, Record, eventually, read_topic};
use outbox_relay::{
    Level, check,
    config::{Config, KafkaProperties, KafkaSecurity, Mechanism, SinkKind},
};

use super::broker::{NEWCOMER, PASSWORD, PLAIN_PASSWORD, SecureBroker, USER};
use crate::{
    acl::{self, Allowed},
    for_each_sink,
    harness::Session,
    publishing::Setup,
};

for_each_sink! {
    records_get_in_by_every_mechanism,
    records_get_in_by_a_certificate,
    what_the_readme_asks_for_is_all_that_a_relay_needs,
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

/// What stands in the topic, read by the plain port, once there is so much.
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

async fn publish_one(setup: &Setup) -> Result<()> {
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

async fn records_get_in_by_every_mechanism(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    for (mechanism, password) in [
        (Mechanism::Plain, PLAIN_PASSWORD),
        (Mechanism::ScramSha256, PASSWORD),
        (Mechanism::ScramSha512, PASSWORD),
    ] {
        let security = broker.login_by(mechanism, password);
        let setup = setup(broker, &broker.ports.login, sink, security).await?;
        publish_one(&setup).await?;
    }
    Ok(())
}

/// The sink `kafka` has no such login: `kafka.properties` has what librdkafka can do and we don't.
#[tokio::test(flavor = "multi_thread")]
async fn records_get_in_by_a_login_of_librdkafka() -> Result<()> {
    let broker = SecureBroker::shared();
    let security = broker.tls();
    let mut setup = setup(broker, &broker.ports.login, SinkKind::RdKafka, security).await?;
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
    // Our own client can't log in, and says so instead of naming a mistake.
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
    let home = Home::new()?;
    let path = home.write("outbox-relay.toml", &config)?;
    Ok(Config::load(&path)?.kafka.properties)
}

async fn records_get_in_by_a_certificate(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let security = broker.certificate();
    let setup = setup(broker, &broker.ports.certificate, sink, security).await?;
    publish_one(&setup).await
}

async fn what_the_readme_asks_for_is_all_that_a_relay_needs(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let mut security = broker.login();
    if let Some(sasl) = &mut security.sasl {
        sasl.username = NEWCOMER.into();
    }
    let setup = setup(broker, &broker.ports.login, sink, security).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    let text = relay.wait_for_state(503, &setup.topic).await?;
    assert!(text.contains("is rejected"), "{text}");
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
