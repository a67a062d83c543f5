//! Encryption and authentication of connections to brokers.

use cli::Secret;
use tls::TlsFiles;

use crate::{Extensions, TokenSource};

/// Encryption and authentication of connections to brokers.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// `None` for plaintext connections.
    pub tls: Option<TlsFiles>,
    /// `None` without SASL: the client is anonymous or has a certificate.
    pub sasl: Option<Sasl>,
}

impl Security {
    /// Returns true if a secret is sent without encryption: to a broker, or to an authorization server.
    pub fn sends_plaintext_secret(&self) -> bool {
        match &self.sasl {
            Some(Sasl::Password { mechanism, .. }) => {
                self.tls.is_none() && *mechanism == PasswordMechanism::Plain
            }
            Some(Sasl::OAuthBearer { tokens, .. }) => {
                let is_plaintext = match tokens {
                    TokenSource::File(_) => false,
                    TokenSource::Endpoint(endpoint) => endpoint.is_plaintext(),
                };
                self.tls.is_none() || is_plaintext
            }
            None => false,
        }
    }
}

/// SASL credentials.
#[derive(Clone, Debug)]
pub enum Sasl {
    /// A user name and a password.
    Password {
        /// The use of the password.
        mechanism: PasswordMechanism,
        /// The user name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A bearer token (RFC 7628).
    OAuthBearer {
        /// The source of the tokens.
        tokens: TokenSource,
        /// What brokers expect with the token.
        extensions: Extensions,
    },
}

impl Sasl {
    /// The name of [`OAuthBearer`](Self::OAuthBearer) in the SASL handshake.
    pub const OAUTHBEARER: &'static str = "OAUTHBEARER";

    /// Returns the name of the mechanism in the SASL handshake.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::Password { mechanism, .. } => mechanism.name(),
            Self::OAuthBearer { .. } => Self::OAUTHBEARER,
        }
    }
}

/// A SASL mechanism with a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordMechanism {
    /// Sends the password (RFC 4616).
    Plain,
    /// Proves the knowledge of the password without sending it (RFC 5802, RFC 7677).
    ScramSha256,
    /// SCRAM with SHA-512.
    ScramSha512,
}

impl PasswordMechanism {
    /// All mechanisms.
    pub const ALL: [Self; 3] = [Self::Plain, Self::ScramSha256, Self::ScramSha512];

    /// Returns the name in the SASL handshake.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}
