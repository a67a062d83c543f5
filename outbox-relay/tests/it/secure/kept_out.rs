//! What is said when a broker, or the relay, finds that the other is not whom it wants.

use anyhow::{Context as _, Result};
use outbox_relay::{
    Level, TlsFiles, check,
    config::{KafkaSecurity, Mechanism, SinkKind},
};

use super::{
    broker::{SecureBroker, USER},
    certificates::{Authority, Issued},
    kafka::setup,
};
use crate::for_each_sink;

for_each_sink! {
    what_keeps_the_relay_out_is_said_in_a_line_that_names_the_way_out,
}

async fn what_keeps_the_relay_out_is_said_in_a_line_that_names_the_way_out(
    sink: SinkKind,
) -> Result<()> {
    let broker = SecureBroker::shared();
    let ports = &broker.ports;
    let plain = KafkaSecurity::default();
    let stranger = Authority::new("another authority")?;
    let strange_ca = broker.home.write("strange-ca.crt", &stranger.pem)?;
    let trusting = |ca| KafkaSecurity {
        tls: Some(TlsFiles { ca, identity: None }),
        sasl: broker.login().sasl,
    };
    let showing = |issued: Issued, name: &str| {
        let mut security = broker.tls();
        security.tls = Some(TlsFiles {
            ca: Some(broker.ca.clone()),
            identity: Some(issued.write(&broker.home, name)?),
        });
        anyhow::Ok(security)
    };
    let expired = showing(broker.authority.issue_expired(USER)?, "expired-client")?;
    let strange = showing(stranger.issue(USER)?, "strange-client")?;
    let wrong = |mechanism| broker.login_by(mechanism, "wrong-password");
    let mut login_without_tls = broker.login();
    login_without_tls.tls = None;
    let plain_port = broker.kafka.brokers().to_owned();
    let mut setup = setup(broker, &ports.login, sink, plain.clone()).await?;
    for (what, brokers, security, words) in [
        (
            "a wrong password",
            &ports.login,
            wrong(Mechanism::Plain),
            "check kafka.sasl.username and its password",
        ),
        (
            "a wrong password",
            &ports.login,
            wrong(Mechanism::ScramSha256),
            "check kafka.sasl.username and its password",
        ),
        (
            "a wrong password",
            &ports.login,
            wrong(Mechanism::ScramSha512),
            "check kafka.sasl.username and its password",
        ),
        (
            "another authority",
            &ports.login,
            trusting(Some(strange_ca)),
            "UnknownIssuer; kafka.tls.ca_file has to hold the CA",
        ),
        (
            "the system's authorities",
            &ports.login,
            trusting(None),
            "UnknownIssuer; kafka.tls.ca_file has to hold the CA",
        ),
        (
            "a certificate that has run out",
            &ports.expired,
            broker.tls(),
            "expired",
        ),
        (
            "a certificate of another name",
            &ports.misnamed,
            broker.tls(),
            "not valid for name",
        ),
        (
            "plain text at a port for TLS",
            &ports.certificate,
            plain.clone(),
            "Then add [kafka.tls]",
        ),
        (
            "plain text at a port for logins",
            &ports.login,
            plain.clone(),
            "Then add [kafka.tls]",
        ),
        (
            "a login in plain text at a port for TLS",
            &ports.login,
            login_without_tls.clone(),
            "Then add [kafka.tls]",
        ),
        (
            "TLS without a login at a port for logins",
            &ports.login,
            broker.tls(),
            "or [kafka.sasl]?",
        ),
        (
            "TLS at a plain port",
            &plain_port,
            broker.tls(),
            "If not, remove [kafka.tls]",
        ),
        (
            "TLS and a login at a plain port",
            &plain_port,
            broker.login(),
            "If not, remove [kafka.tls]",
        ),
        (
            "a login at a plain port",
            &plain_port,
            login_without_tls,
            "remove [kafka.sasl]",
        ),
        (
            "no certificate",
            &ports.certificate,
            broker.tls(),
            "certificate_file and key_file have to be",
        ),
        (
            "an expired certificate of our own",
            &ports.certificate,
            expired,
            "certificate_file and key_file have to be",
        ),
        (
            "a strange certificate of our own",
            &ports.certificate,
            strange,
            "certificate_file and key_file have to be",
        ),
        (
            "a login where certificates are asked for",
            &ports.certificate,
            broker.login(),
            "certificate_file and key_file have to be",
        ),
    ] {
        setup.brokers = brokers.clone();
        setup.security = security;
        let relay = setup.start().await?;
        let text = relay
            .wait_for_state(503, "Kafka doesn't take records: ")
            .await?;
        assert!(text.contains(words), "{what}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{what}: {text}");
        relay.stop().await?;
        let found = check(&setup.config()?).await;
        let wrong = found.iter().find(|found| found.level == Level::Fail);
        let line = wrong.context("nothing is wrong")?.to_string();
        assert!(line.contains(words), "{what}: {line}");
        assert!(line.contains("kafka: "), "{what}: {line}");
    }
    Ok(())
}
