//! The use of the crate `kafka_client`: options, hints and errors.

use std::time::Duration;

use kafka_client::{Hints, Options, TokenHints};
use kafka_protocol::{error::ResponseError, messages::ApiKey};

use crate::{
    config::KafkaConfig,
    kafka::{RejectionCause, SinkError},
};

/// The client id in the brokers' logs and quotas.
pub(super) const CLIENT_ID: &str = "outbox-relay";

// The request versions, each the oldest with the features used here. Kafka 2.8 to 4 support all of them.
pub(super) const PRODUCE_VERSION: i16 = 9;
pub(super) const METADATA_VERSION: i16 = 9;
pub(super) const FIND_COORDINATOR_VERSION: i16 = 3;
pub(super) const INIT_PRODUCER_ID_VERSION: i16 = 4;
pub(super) const DESCRIBE_CONFIGS_VERSION: i16 = 4;

const REQUIRED_VERSIONS: [(ApiKey, i16); 5] = [
    (ApiKey::Produce, PRODUCE_VERSION),
    (ApiKey::Metadata, METADATA_VERSION),
    (ApiKey::FindCoordinator, FIND_COORDINATOR_VERSION),
    (ApiKey::InitProducerId, INIT_PRODUCER_ID_VERSION),
    (ApiKey::DescribeConfigs, DESCRIBE_CONFIGS_VERSION),
];

/// The limit on connecting, and on all requests other than Produce. A shorter delivery timeout limits them, too.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

const HINTS: Hints = Hints {
    add_tls: "if this port uses TLS, add [kafka.tls]",
    remove_tls: "if this port does not use TLS, remove [kafka.tls]",
    closed_early: "check whether this port requires [kafka.tls] or [kafka.sasl]",
    remove_sasl: "remove [kafka.sasl], or set kafka.brokers to a port with SASL",
    mechanism: "kafka.sasl.mechanism",
    credentials: "check kafka.sasl.username and its password",
    tokens: TokenHints {
        file: "check that kafka.sasl.token_file is renewed; the brokers' log names a wrong issuer, audience or key",
        client_credentials: "check kafka.sasl.client_id, its secret and scope; the brokers' log names a wrong issuer, audience \
                             or key",
        endpoint: "check kafka.sasl.token_endpoint, and that its server is running",
        certificates: tls::Settings {
            ca: "kafka.sasl.token_endpoint_ca_file",
            address: "the host of kafka.sasl.token_endpoint",
            identity: "",
        },
    },
    old_broker: "use Kafka 2.8 or newer, or set `sink = \"rdkafka\"`",
    certificates: tls::Settings {
        ca: "kafka.tls.ca_file",
        address: "each host in kafka.brokers and the brokers' advertised.listeners",
        identity: "kafka.tls.certificate_file and key_file",
    },
};

/// Returns the parameters of connections.
pub(super) fn options(kafka: &KafkaConfig) -> Options {
    Options {
        client_id: CLIENT_ID,
        security: kafka.security.clone(),
        timeout: kafka.delivery_timeout.min(REQUEST_TIMEOUT),
        required_versions: &REQUIRED_VERSIONS,
        hints: &HINTS,
    }
}

impl From<kafka_client::Error> for SinkError {
    fn from(err: kafka_client::Error) -> Self {
        use kafka_client::Error as E;
        match err {
            E::Unavailable(reason) => Self::Unavailable(reason),
            E::Unauthenticated(reason) => Self::Unauthenticated(reason),
            E::TopicDenied(topic) => {
                let reason = ResponseError::TopicAuthorizationFailed;
                Self::rejected(&topic, reason).with_cause(RejectionCause::Environment)
            }
            E::InvalidTopic(topic) => Self::rejected(&topic, ResponseError::InvalidTopicException),
            E::UnknownTopic(_) | E::UnknownPartition { .. } => Self::Unavailable(err.to_string()),
        }
    }
}
