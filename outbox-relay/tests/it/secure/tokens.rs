//! OAUTHBEARER: tokens from a file and from an authorization server.

use anyhow::Result;
use devstack::{Audit, Authority, eventually, read_topic};
use outbox_relay::{
    Level, check,
    config::{
        ClientCredentials, Extensions, KafkaSecurity, Sasl, SinkKind, TokenEndpoint, TokenSource,
        TokenUrl,
    },
};

use super::{
    authorization_server::{CLIENT_SECRET, unsigned_token},
    broker::SecureBroker,
    kafka::{publish_one, records, setup},
};
use crate::harness::{Session, Writers};

const HOUR_S: i64 = 3_600;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_a_file_authenticates() -> Result<()> {
    let broker = SecureBroker::shared();
    let file = broker.work_dir.write("token", &unsigned_token(HOUR_S))?;
    // Confluent Cloud requires extensions. The broker's login module accepts any.
    let extensions = [("logicalCluster".to_owned(), "lkc-1".to_owned())];
    let security = broker.with_sasl(Sasl::OAuthBearer {
        tokens: TokenSource::File(file),
        extensions: Extensions::parse(extensions.into()).map_err(anyhow::Error::msg)?,
    });
    let setup = setup(broker, &broker.ports.sasl, SinkKind::Kafka, security).await?;
    publish_one(&setup).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_token_file_takes_effect_without_a_restart() -> Result<()> {
    let broker = SecureBroker::shared();
    let expired = unsigned_token(-60);
    let file = broker.work_dir.write("replaced-token", &expired)?;
    let security = broker.tokens(TokenSource::File(file));
    let setup = setup(broker, &broker.ports.sasl, SinkKind::Kafka, security).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    let text = relay
        .wait_for_state(503, "check that kafka.sasl.token_file is renewed")
        .await?;
    assert!(text.contains("the token has expired"), "{text}");
    let renewed = format!("{}\n", unsigned_token(HOUR_S));
    broker.work_dir.write("replaced-token", &renewed)?;
    records(broker, &setup, 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn client_credentials_are_exchanged_for_one_token() -> Result<()> {
    let owned = SecureBroker::start().await?;
    let broker = &owned;
    let security = endpoint(broker, broker.client_credentials())?;
    let setup = setup(broker, &broker.ports.token, SinkKind::Kafka, security).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    records(broker, &setup, 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    let found = check(&setup.config()?).await;
    let wrong = found.iter().find(|found| found.level == Level::Fail);
    assert_eq!(wrong, None);
    assert_eq!(broker.authorization_server.issued_tokens(), 1);
    owned.kafka.process.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiring_token_is_replaced_while_records_flow() -> Result<()> {
    let broker = SecureBroker::shared();
    let credentials = ClientCredentials {
        scope: Some("short".into()),
        ..broker.client_credentials()
    };
    let security = endpoint(broker, credentials)?;
    let setup = setup(broker, &broker.ports.token, SinkKind::Kafka, security).await?;
    let mut writers = Writers::start(&setup.database, &setup.topic).await?;
    let relay = setup.start().await?;
    // The third token replaces the second one, after the first one has expired.
    eventually("a third token", async || {
        let issued = broker.authorization_server.issued_short_tokens();
        Ok((issued >= 3).then_some(()))
    })
    .await?;
    writers.end().await?;
    let newest = setup.database.newest().await?;
    let audit = eventually("all rows in the topic", async || {
        let records = read_topic(broker.kafka.brokers(), &setup.topic).await?;
        let audit = Audit::new(&newest, &records);
        Ok((audit.lost == 0).then_some(audit))
    })
    .await?;
    assert!(audit.is_clean(), "{audit}");
    // Epoch 1: the broker closed no connection.
    let (_, text) = outbox_relay::ask(relay.admin_addr, "/status").await?;
    assert!(text.contains(r#""epoch":1,"#), "{text}");
    relay.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_tokens_is_one_line_with_its_cause_and_a_hint() -> Result<()> {
    let broker = SecureBroker::shared();
    let valid = || broker.client_credentials();
    let other_authority = Authority::new("other CA")?;
    let other_ca = broker
        .work_dir
        .write("tokens-other-ca.crt", &other_authority.pem)?;
    let plain = KafkaSecurity::default();
    let mut setup = setup(broker, &broker.ports.token, SinkKind::Kafka, plain).await?;
    let wrong_path = broker.authorization_server.url.replace("/token", "/tokens");
    let unsigned = broker
        .work_dir
        .write("unsigned-token", &unsigned_token(HOUR_S))?;
    let expired = broker.authorization_server.expired_token(10);
    let expired = broker.work_dir.write("expired-token", &expired)?;
    for (what, security, words) in [
        (
            "a wrong secret",
            endpoint(
                broker,
                ClientCredentials {
                    client_secret: "mistaken".into(),
                    ..valid()
                },
            )?,
            "\"invalid_client\": \"unknown client\"; check kafka.sasl.client_id, its secret and scope",
        ),
        (
            "an unknown scope",
            endpoint(
                broker,
                ClientCredentials {
                    scope: Some("unknown".into()),
                    ..valid()
                },
            )?,
            "\"invalid_scope\"; check kafka.sasl.client_id, its secret and scope",
        ),
        (
            "a token for another service",
            endpoint(
                broker,
                ClientCredentials {
                    scope: Some("other-audience".into()),
                    ..valid()
                },
            )?,
            "the brokers' log names a wrong issuer, audience or key",
        ),
        (
            "a token without a signature",
            broker.tokens(TokenSource::File(unsigned)),
            "the brokers' log names a wrong issuer, audience or key",
        ),
        (
            "a token that has expired within the broker's tolerance for clocks",
            broker.tokens(TokenSource::File(expired)),
            "the token has expired; check that kafka.sasl.token_file is renewed",
        ),
        (
            "a CA that did not sign the certificate",
            endpoint(
                broker,
                ClientCredentials {
                    ca: Some(other_ca),
                    ..valid()
                },
            )?,
            "UnknownIssuer; set kafka.sasl.token_endpoint_ca_file to the CA that signed",
        ),
        (
            "an address that is no token endpoint",
            endpoint_at(broker, &wrong_path, valid())?,
            "unexpected response 404 Not Found; check kafka.sasl.token_endpoint",
        ),
        (
            "an address without a server",
            endpoint_at(broker, "https://localhost:1/token", valid())?,
            "Connection refused (os error 111); check kafka.sasl.token_endpoint",
        ),
    ] {
        setup.security = security;
        let relay = setup.start().await?;
        let text = relay
            .wait_for_state(503, "failed to produce to Kafka: ")
            .await?;
        assert!(text.contains(words), "{what}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{what}: {text}");
        assert!(
            text.contains("Hint: Correct the settings of [kafka.sasl]"),
            "{what}: {text}"
        );
        assert!(!text.contains(CLIENT_SECRET), "{what}: {text}");
        relay.stop().await?;
    }
    Ok(())
}

fn endpoint(broker: &SecureBroker, credentials: ClientCredentials) -> Result<KafkaSecurity> {
    endpoint_at(broker, &broker.authorization_server.url, credentials)
}

fn endpoint_at(
    broker: &SecureBroker,
    url: &str,
    credentials: ClientCredentials,
) -> Result<KafkaSecurity> {
    let url = TokenUrl::parse(url).map_err(anyhow::Error::msg)?;
    let endpoint = TokenEndpoint::new(url, credentials);
    Ok(broker.tokens(TokenSource::Endpoint(endpoint)))
}
