//! Error messages of failed TLS handshakes and authentication.

use anyhow::{Context as _, Result};
use devstack::{Authority, Issued};
use outbox_relay::{
    Level, TlsFiles, check,
    config::{KafkaSecurity, PasswordMechanism, SinkKind},
};

use super::{
    broker::{SecureBroker, USER},
    kafka::setup,
};
use crate::for_each_sink;

for_each_sink! {
    a_connection_failure_is_one_line_with_its_cause_and_a_hint,
}

async fn a_connection_failure_is_one_line_with_its_cause_and_a_hint(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let ports = &broker.ports;
    let plain = KafkaSecurity::default();
    let other_authority = Authority::new("other CA")?;
    let other_ca = broker
        .work_dir
        .write("other-ca.crt", &other_authority.pem)?;
    let trusting = |ca| KafkaSecurity {
        tls: Some(TlsFiles { ca, identity: None }),
        sasl: broker.scram().sasl,
    };
    let presenting = |issued: Issued, name: &str| {
        let mut security = broker.tls();
        security.tls = Some(TlsFiles {
            ca: Some(broker.ca.clone()),
            identity: Some(issued.write(&broker.work_dir, name)?),
        });
        anyhow::Ok(security)
    };
    let expired = presenting(broker.authority.issue_expired(USER)?, "expired-client")?;
    let untrusted = presenting(other_authority.issue(USER)?, "untrusted-client")?;
    let wrong = |mechanism| broker.sasl(mechanism, "wrong-password");
    let mut sasl_without_tls = broker.scram();
    sasl_without_tls.tls = None;
    let plain_port = broker.kafka.brokers().to_owned();
    let mut setup = setup(broker, &ports.sasl, sink, plain.clone()).await?;
    for (what, brokers, security, words) in [
        (
            "a wrong password",
            &ports.sasl,
            wrong(PasswordMechanism::Plain),
            "check kafka.sasl.username and its password",
        ),
        (
            "a wrong password",
            &ports.sasl,
            wrong(PasswordMechanism::ScramSha256),
            "check kafka.sasl.username and its password",
        ),
        (
            "a wrong password",
            &ports.sasl,
            wrong(PasswordMechanism::ScramSha512),
            "check kafka.sasl.username and its password",
        ),
        (
            "a CA that did not sign the certificate",
            &ports.sasl,
            trusting(Some(other_ca)),
            "UnknownIssuer; set kafka.tls.ca_file to the CA that signed",
        ),
        (
            "the operating system's CAs",
            &ports.sasl,
            trusting(None),
            "UnknownIssuer; set kafka.tls.ca_file to the CA that signed",
        ),
        (
            "an expired server certificate",
            &ports.expired,
            broker.tls(),
            "expired",
        ),
        (
            "a server certificate for another name",
            &ports.misnamed,
            broker.tls(),
            "not valid for name",
        ),
        (
            "plaintext on a TLS port",
            &ports.certificate,
            plain.clone(),
            "if this port uses TLS, add [kafka.tls]",
        ),
        (
            "plaintext on a SASL_SSL port",
            &ports.sasl,
            plain.clone(),
            "if this port uses TLS, add [kafka.tls]",
        ),
        (
            "SASL without TLS on a SASL_SSL port",
            &ports.sasl,
            sasl_without_tls.clone(),
            "if this port uses TLS, add [kafka.tls]",
        ),
        (
            "TLS without SASL on a SASL_SSL port",
            &ports.sasl,
            broker.tls(),
            "requires [kafka.tls] or [kafka.sasl]",
        ),
        (
            "TLS on a plaintext port",
            &plain_port,
            broker.tls(),
            "if this port does not use TLS, remove [kafka.tls]",
        ),
        (
            "TLS and SASL on a plaintext port",
            &plain_port,
            broker.scram(),
            "if this port does not use TLS, remove [kafka.tls]",
        ),
        (
            "SASL on a plaintext port",
            &plain_port,
            sasl_without_tls,
            "remove [kafka.sasl]",
        ),
        (
            "no client certificate",
            &ports.certificate,
            broker.tls(),
            "certificate_file and key_file to a valid certificate",
        ),
        (
            "an expired client certificate",
            &ports.certificate,
            expired,
            "certificate_file and key_file to a valid certificate",
        ),
        (
            "an untrusted client certificate",
            &ports.certificate,
            untrusted,
            "certificate_file and key_file to a valid certificate",
        ),
        (
            "SASL on a port that requires a client certificate",
            &ports.certificate,
            broker.scram(),
            "certificate_file and key_file to a valid certificate",
        ),
    ] {
        setup.brokers = brokers.clone();
        setup.security = security;
        let relay = setup.start().await?;
        let text = relay
            .wait_for_state(503, "failed to produce to Kafka: ")
            .await?;
        assert!(text.contains(words), "{what}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{what}: {text}");
        relay.stop().await?;
        let found = check(&setup.config()?).await;
        let wrong = found.iter().find(|found| found.level == Level::Fail);
        let line = wrong.context("check reports no failure")?.to_string();
        assert!(line.contains(words), "{what}: {line}");
        assert!(line.contains("kafka: "), "{what}: {line}");
    }
    Ok(())
}
