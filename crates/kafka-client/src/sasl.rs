//! SASL authentication with `SaslHandshake` and `SaslAuthenticate` requests (KIP-152).

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{SaslAuthenticateRequest, SaslHandshakeRequest},
    protocol::StrBytes,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use crate::{
    Error, Hints, Mechanism, Options, Sasl,
    connection::{Connection, unavailable},
    scram::Scram,
};

const HANDSHAKE_VERSION: i16 = 1;
const AUTHENTICATE_VERSION: i16 = 2;
/// The limit on a session's lifetime. Arithmetic with an arbitrary value from a broker could overflow.
const MAX_LIFETIME: Duration = Duration::from_hours(24);

/// Authenticates, and returns when the session expires, if it does (KIP-368).
pub(crate) async fn authenticate(
    connection: &mut Connection,
    sasl: &Sasl,
    options: &Options,
) -> Result<Option<Instant>, Error> {
    let password = sasl.password.read();
    let password = password.map_err(|err| Error::Unavailable(err.to_string()))?;
    handshake(connection, sasl.mechanism, options).await?;
    // Before the broker's clock for the session starts.
    let started_at = Instant::now();
    let mut session = Session {
        connection,
        sasl,
        timeout: options.timeout,
        hints: options.hints,
        lifetime: Duration::ZERO,
    };
    match sasl.mechanism {
        Mechanism::Plain => session.authenticate_plain(&password).await?,
        Mechanism::ScramSha256 | Mechanism::ScramSha512 => {
            session.authenticate_scram(&password).await?
        }
    }
    let lifetime = session.lifetime;
    Ok((!lifetime.is_zero()).then(|| started_at + lifetime))
}

/// Selects the mechanism.
async fn handshake(
    connection: &mut Connection,
    mechanism: Mechanism,
    options: &Options,
) -> Result<(), Error> {
    let name = StrBytes::from_static_str(mechanism.name());
    let request = SaslHandshakeRequest::default().with_mechanism(name);
    let response = connection
        .call(&request, HANDSHAKE_VERSION, options.timeout)
        .await?;
    let reason = match response.error_code.err() {
        None => return Ok(()),
        Some(ResponseError::UnsupportedSaslMechanism) => {
            let offered: Vec<&str> = response.mechanisms.iter().map(|name| &**name).collect();
            format!(
                "SASL mechanism {} is not enabled on this port; set {} to one of {}",
                mechanism.name(),
                options.hints.mechanism,
                offered.join(", ")
            )
        }
        Some(ResponseError::IllegalSaslState) => {
            format!("this port does not use SASL; {}", options.hints.remove_sasl)
        }
        Some(err) => err.to_string(),
    };
    Err(unavailable(&connection.address, reason))
}

struct Session<'a> {
    connection: &'a mut Connection,
    sasl: &'a Sasl,
    timeout: Duration,
    hints: &'static Hints,
    /// From the last response; zero means unlimited.
    lifetime: Duration,
}

impl Session<'_> {
    /// PLAIN, RFC 4616.
    async fn authenticate_plain(&mut self, password: &SecretString) -> Result<(), Error> {
        let message = format!("\0{}\0{}", self.sasl.username, password.expose_secret());
        self.exchange(message).await.map(drop)
    }

    async fn authenticate_scram(&mut self, password: &SecretString) -> Result<(), Error> {
        let scram = Scram::new(self.sasl.mechanism, &self.sasl.username);
        let server_first = self.exchange(scram.client_first()).await?;
        let client_final = scram.client_final(password.expose_secret(), &server_first);
        let client_final = client_final.map_err(|reason| self.failed(reason))?;
        let server_final = self.exchange(client_final.message.clone()).await?;
        if client_final.verify(&server_final) {
            return Ok(());
        }
        Err(self.failed("invalid server signature; check that this is the right broker"))
    }

    /// Sends a message of the mechanism and returns the broker's reply.
    async fn exchange(&mut self, message: String) -> Result<String, Error> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
        let call = self
            .connection
            .call(&request, AUTHENTICATE_VERSION, self.timeout);
        let response = call.await?;
        if let Some(err) = response.error_code.err() {
            let reason = response
                .error_message
                .map_or(err.to_string(), |message| message.to_string());
            return Err(self.failed(&format!("{reason}; {}", self.hints.credentials)));
        }
        let lifetime_ms = u64::try_from(response.session_lifetime_ms).unwrap_or(0);
        self.lifetime = Duration::from_millis(lifetime_ms).min(MAX_LIFETIME);
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec());
        text(response.auth_bytes).map_err(|_| self.failed("the broker's message is not UTF-8"))
    }

    fn failed(&self, reason: &str) -> Error {
        let Sasl {
            mechanism,
            username,
            ..
        } = self.sasl;
        let mechanism = mechanism.name();
        let reason =
            format!("SASL authentication failed for user {username:?} with {mechanism}: {reason}");
        unavailable(&self.connection.address, reason)
    }
}
