use std::time::Duration;

use kafka_protocol::messages::ApiKey;

use crate::Security;

/// The parameters of connections.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the program in the brokers' logs, metrics and quotas: letters, digits, `-` and `.` (KIP-511).
    pub client_id: &'static str,
    /// Encryption and authentication.
    pub security: Security,
    /// The limit on each wait: for a TCP connection, a TLS handshake, or a response.
    pub timeout: Duration,
    /// The API versions that the caller sends. A broker that lacks one fails the connection with
    /// [`Hints::old_broker`].
    pub required_versions: &'static [(ApiKey, i16)],
    /// What errors advise.
    pub hints: &'static Hints,
}

/// What errors advise, with the names of the program's settings.
#[derive(Debug)]
pub struct Hints {
    /// For a port that seems to use TLS.
    pub add_tls: &'static str,
    /// For a port that seems not to use TLS.
    pub remove_tls: &'static str,
    /// For a port that closes new connections: it may require TLS or SASL.
    pub closed_early: &'static str,
    /// For a port without SASL.
    pub remove_sasl: &'static str,
    /// The name of the setting of the SASL mechanism.
    pub mechanism: &'static str,
    /// For a wrong SASL user name or password.
    pub credentials: &'static str,
    /// For tokens.
    pub tokens: TokenHints,
    /// For a broker that does not support a required API version.
    pub old_broker: &'static str,
    /// The names of the settings of certificates.
    pub certificates: tls::Settings,
}

/// What errors of OAUTHBEARER advise.
#[derive(Debug)]
pub struct TokenHints {
    /// For a token from a file that a broker rejects.
    pub file: &'static str,
    /// For a client that an authorization server rejects, and for its token that a broker rejects.
    pub client_credentials: &'static str,
    /// For an address that does not respond as an authorization server.
    pub endpoint: &'static str,
    /// The names of the settings of the authorization server's certificate.
    pub certificates: tls::Settings,
}
