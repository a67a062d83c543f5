//! librdkafka's connection settings.

use std::path::Path;

use rdkafka::ClientConfig;
use secrecy::ExposeSecret as _;

use crate::{
    config::{KafkaConfig, Sasl},
    kafka::SinkError,
};

/// Builds a client configuration. Secrets and certificates are read per client, so a replaced file takes effect with the
/// next client.
pub(super) fn client_config(
    kafka: &KafkaConfig,
    settings: &[(&str, &str)],
) -> Result<ClientConfig, SinkError> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", "outbox-relay");
    let security = &kafka.security;
    let has_login = security.sasl.is_some() || kafka.properties.has_login();
    let protocol = match (&security.tls, has_login) {
        (None, false) => "plaintext",
        (Some(_), false) => "ssl",
        (None, true) => "sasl_plaintext",
        (Some(_), true) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(files) = &security.tls {
        // "probe" searches the operating system's certificate locations.
        let ca = files.ca.as_deref().unwrap_or(Path::new("probe"));
        config.set("ssl.ca.location", ca.to_string_lossy());
        if let Some(identity) = &files.identity {
            config
                .set(
                    "ssl.certificate.location",
                    identity.certificate.to_string_lossy(),
                )
                .set("ssl.key.location", identity.key.to_string_lossy());
        }
    }
    match &security.sasl {
        Some(Sasl::Password {
            mechanism,
            username,
            password,
        }) => {
            let password = password.read();
            let password = password.map_err(|err| SinkError::Unauthenticated(err.to_string()))?;
            config
                .set("sasl.mechanism", mechanism.name())
                .set("sasl.username", username)
                .set("sasl.password", password.expose_secret());
        }
        Some(Sasl::OAuthBearer { .. }) => {
            let reason = "OAUTHBEARER of [kafka.sasl] requires kafka.sink = \"kafka\"";
            return Err(SinkError::Unauthenticated(reason.into()));
        }
        None => {}
    }
    for (name, value) in settings {
        config.set(*name, *value);
    }
    // Last, because they may override the settings above.
    kafka.properties.apply(&mut config);
    Ok(config)
}
