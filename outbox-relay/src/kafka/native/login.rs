//! The login that a broker may ask for before anything else (SASL).

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{SaslAuthenticateRequest, SaslHandshakeRequest},
    protocol::StrBytes,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use super::{
    connection::{Connection, unavailable},
    scram::Scram,
};
use crate::{
    config::{Mechanism, Sasl},
    kafka::SinkError,
};

const HANDSHAKE_VERSION: i16 = 1;
const AUTHENTICATE_VERSION: i16 = 2;
/// A login is taken to run out after so long at the latest; arithmetic with any number that a broker may say could overflow.
const MAX_LIFETIME: Duration = Duration::from_hours(24);

/// Logs in; returns when the login runs out, if it does.
pub(super) async fn log_in(
    connection: &mut Connection,
    sasl: &Sasl,
    timeout: Duration,
) -> Result<Option<Instant>, SinkError> {
    let password = sasl.password.read();
    let password = password.map_err(|err| SinkError::Unavailable(err.to_string()))?;
    shake_hands(connection, sasl.mechanism, timeout).await?;
    // Before the broker begins to count.
    let logged_in_at = Instant::now();
    let mut login = Login {
        connection,
        sasl,
        timeout,
        lifetime: Duration::ZERO,
    };
    match sasl.mechanism {
        Mechanism::Plain => login.plain(&password).await?,
        Mechanism::ScramSha256 | Mechanism::ScramSha512 => login.scram(&password).await?,
    }
    let lifetime = login.lifetime;
    Ok((!lifetime.is_zero()).then(|| logged_in_at + lifetime))
}

/// Asks for a mechanism.
async fn shake_hands(
    connection: &mut Connection,
    mechanism: Mechanism,
    timeout: Duration,
) -> Result<(), SinkError> {
    let name = StrBytes::from_static_str(mechanism.name());
    let request = SaslHandshakeRequest::default().with_mechanism(name);
    let answer = connection
        .call(&request, HANDSHAKE_VERSION, timeout)
        .await?;
    let reason = match answer.error_code.err() {
        None => return Ok(()),
        Some(ResponseError::UnsupportedSaslMechanism) => {
            let offered: Vec<&str> = answer.mechanisms.iter().map(|name| &**name).collect();
            format!(
                "doesn't know {} here; set kafka.sasl.mechanism to one of {}",
                mechanism.name(),
                offered.join(", ")
            )
        }
        Some(ResponseError::IllegalSaslState) => {
            "asks for no login at this port; remove [kafka.sasl], or name the port for logins"
                .into()
        }
        Some(err) => err.to_string(),
    };
    Err(unavailable(&connection.address, reason))
}

struct Login<'a> {
    connection: &'a mut Connection,
    sasl: &'a Sasl,
    timeout: Duration,
    /// As the last answer says; zero: for ever.
    lifetime: Duration,
}

impl Login<'_> {
    async fn plain(&mut self, password: &SecretString) -> Result<(), SinkError> {
        let message = format!("\0{}\0{}", self.sasl.username, password.expose_secret());
        self.exchange(message).await.map(drop)
    }

    async fn scram(&mut self, password: &SecretString) -> Result<(), SinkError> {
        let scram = Scram::begin(self.sasl.mechanism, &self.sasl.username);
        let server_first = self.exchange(scram.message()).await?;
        let proof = scram.prove(password.expose_secret(), &server_first);
        let proof = proof.map_err(|reason| self.failed(reason))?;
        let server_final = self.exchange(proof.message.clone()).await?;
        if proof.is_answered_by(&server_final) {
            return Ok(());
        }
        Err(self.failed("it doesn't know the password itself; is it the right broker?"))
    }

    /// Sends a message of the mechanism, and returns the answer to it.
    async fn exchange(&mut self, message: String) -> Result<String, SinkError> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
        let asking = self
            .connection
            .call(&request, AUTHENTICATE_VERSION, self.timeout);
        let answer = asking.await?;
        if let Some(err) = answer.error_code.err() {
            let said = answer
                .error_message
                .map_or(err.to_string(), |said| said.to_string());
            return Err(self.failed(&format!(
                "{said}; check kafka.sasl.username and its password"
            )));
        }
        let lifetime_ms = u64::try_from(answer.session_lifetime_ms).unwrap_or(0);
        self.lifetime = Duration::from_millis(lifetime_ms).min(MAX_LIFETIME);
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec());
        text(answer.auth_bytes).map_err(|_| self.failed("its message isn't text"))
    }

    fn failed(&self, reason: &str) -> SinkError {
        let Sasl {
            mechanism,
            username,
            ..
        } = self.sasl;
        let mechanism = mechanism.name();
        let reason = format!("no login as {username:?} by {mechanism}: {reason}");
        unavailable(&self.connection.address, reason)
    }
}
