//! A small Kafka client: connections in Kafka's own protocol, for what librdkafka does not expose.
//!
//! - [`Cluster`] connects to the first broker that responds, describes topics, and finds the end of a leader epoch.
//! - [`dial`] opens a [`Connection`] to one broker: TCP, TLS, and SASL with PLAIN, SCRAM or OAUTHBEARER.
//! - [`validate_response`] compares every length in a response with the received bytes before it is decoded.
//!
//! Waits are limited by [`Options::timeout`] and the throttle times that brokers announce, responses to 16 MiB, and before authentication to 64 KiB.

mod api_versions;
mod cluster;
mod connection;
mod dial;
mod epochs;
mod error;
mod metadata;
mod options;
mod response_layout;
mod sasl;
mod scram;
mod security;
mod throttle;
mod token;
mod token_endpoint;

use self::api_versions::ApiVersions;
pub use self::{
    cluster::Cluster,
    connection::{Connection, Reader, Writer, is_stale, read_frame, unavailable},
    dial::dial,
    epochs::EpochEnd,
    error::Error,
    metadata::{PartitionMetadata, TopicMetadata},
    options::{Hints, Options, TokenHints},
    response_layout::{MalformedResponse, validate as validate_response},
    security::{PasswordMechanism, Sasl, Security},
    throttle::Throttled,
    token::{Extensions, TokenSource},
    token_endpoint::{ClientCredentials, TokenEndpoint, TokenUrl},
};
