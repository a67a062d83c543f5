//! Encryption and authentication of connections to brokers.

use cli::Secret;
use tls::TlsFiles;

/// Encryption and authentication of connections to brokers.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// `None` for plaintext connections.
    pub tls: Option<TlsFiles>,
    /// `None` without SASL: the client is anonymous or has a certificate.
    pub sasl: Option<Sasl>,
}

impl Security {
    /// Returns true if the password is sent without encryption.
    pub fn sends_plaintext_password(&self) -> bool {
        let sasl = self.sasl.as_ref();
        self.tls.is_none() && sasl.is_some_and(|sasl| sasl.mechanism == Mechanism::Plain)
    }
}

/// SASL credentials.
#[derive(Clone, Debug)]
pub struct Sasl {
    /// The SASL mechanism.
    pub mechanism: Mechanism,
    /// The user name.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Sends the password (RFC 4616).
    Plain,
    /// Proves the knowledge of the password without sending it (RFC 5802, RFC 7677).
    ScramSha256,
    /// SCRAM with SHA-512.
    ScramSha512,
}

impl Mechanism {
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
