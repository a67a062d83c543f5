//! SASL authentication with `SaslHandshake` and `SaslAuthenticate` requests (KIP-152).

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{SaslAuthenticateRequest, SaslHandshakeRequest},
    protocol::StrBytes,
};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use crate::{
    Error, Hints, Options, PasswordMechanism, Sasl,
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
    // Secrets are read before the handshake, after which the broker waits for them.
    match sasl {
        Sasl::Password {
            mechanism,
            username,
            password,
        } => {
            let password = password.read();
            let password = password.map_err(|err| Error::Unauthenticated(err.to_string()))?;
            let password = password.expose_secret();
            let mut session = Session::start(connection, sasl, options).await?;
            let authenticated = match mechanism {
                PasswordMechanism::Plain => session.send_password(username, password).await,
                PasswordMechanism::ScramSha256 | PasswordMechanism::ScramSha512 => {
                    let scram = Scram::new(*mechanism, username);
                    session.prove_password(scram, password).await
                }
            };
            let user = format!(" for user {username:?}");
            authenticated.map_err(|err| session.failed(err, &user, options.hints.credentials))?;
            Ok(session.expires_at())
        }
        Sasl::OAuthBearer { tokens, extensions } => {
            let token = tokens.token(options.timeout, &options.hints.tokens).await?;
            let mut session = Session::start(connection, sasl, options).await?;
            let message = token.client_message(extensions);
            let mut authenticated = session.send_token(message).await;
            // Brokers allow for a difference of clocks, but end such a session with the next request.
            if authenticated.is_ok() && session.lifetime.is_zero() && token.has_expired() {
                let reason = "the broker ends the session at once";
                authenticated = Err(Failure::Rejected(reason.into()));
            }
            authenticated.map_err(|err| {
                if let Failure::Rejected(_) = err {
                    tokens.reject(&token);
                }
                let mut hint = tokens.hint(&options.hints.tokens).to_owned();
                if token.has_expired() {
                    hint = format!("the token has expired; {hint}");
                }
                session.failed(err, "", &hint)
            })?;
            Ok(session.expires_at())
        }
    }
}

/// Selects the mechanism.
async fn handshake(
    connection: &mut Connection,
    mechanism: &'static str,
    options: &Options,
) -> Result<(), Error> {
    let name = StrBytes::from_static_str(mechanism);
    let request = SaslHandshakeRequest::default().with_mechanism(name);
    let response = connection
        .call(&request, HANDSHAKE_VERSION, options.timeout)
        .await?;
    let Hints {
        mechanism: setting,
        remove_sasl,
        ..
    } = options.hints;
    let reason = match response.error_code.err() {
        None => return Ok(()),
        Some(ResponseError::UnsupportedSaslMechanism) => {
            let offered: Vec<&str> = response.mechanisms.iter().map(|name| &**name).collect();
            format!(
                "SASL mechanism {mechanism} is not enabled on this port; set {setting} to one of {}",
                offered.join(", ")
            )
        }
        Some(ResponseError::IllegalSaslState) => {
            format!("this port does not use SASL; {remove_sasl}")
        }
        Some(err) => err.to_string(),
    };
    Err(unavailable(&connection.address, reason))
}

struct Session<'a> {
    connection: &'a mut Connection,
    mechanism: &'static str,
    timeout: Duration,
    started_at: Instant,
    /// From the last response; zero means unlimited.
    lifetime: Duration,
}

enum Failure {
    /// The broker did not respond.
    Connection(Error),
    /// The broker rejected the credentials, for this reason.
    Rejected(String),
    /// The broker's message is invalid.
    Invalid(&'static str),
}

impl<'a> Session<'a> {
    async fn start(
        connection: &'a mut Connection,
        sasl: &Sasl,
        options: &Options,
    ) -> Result<Self, Error> {
        let mechanism = sasl.mechanism();
        handshake(connection, mechanism, options).await?;
        Ok(Self {
            connection,
            mechanism,
            timeout: options.timeout,
            // Before the broker's clock for the session starts.
            started_at: Instant::now(),
            lifetime: Duration::ZERO,
        })
    }

    /// PLAIN, RFC 4616.
    async fn send_password(&mut self, username: &str, password: &str) -> Result<(), Failure> {
        let message = format!("\0{username}\0{password}");
        self.exchange(message).await.map(drop)
    }

    async fn prove_password(&mut self, scram: Scram, password: &str) -> Result<(), Failure> {
        let server_first = self.exchange(scram.client_first()).await?;
        let client_final = scram
            .client_final(password, &server_first)
            .map_err(Failure::Invalid)?;
        let server_final = self.exchange(client_final.message.clone()).await?;
        if client_final.verify(&server_final) {
            return Ok(());
        }
        Err(Failure::Invalid(
            "invalid server signature; check that this is the right broker",
        ))
    }

    /// OAUTHBEARER, RFC 7628.
    async fn send_token(&mut self, message: String) -> Result<(), Failure> {
        let reply = self.exchange(message).await?;
        if reply.is_empty() {
            return Ok(());
        }
        // The reply is the reason of a failure as JSON. The broker fails the exchange after an acknowledgement (section 3.2.3).
        self.exchange("\u{1}".into()).await?;
        Err(Failure::Rejected(reply))
    }

    /// Sends a message of the mechanism and returns the broker's reply.
    async fn exchange(&mut self, message: String) -> Result<String, Failure> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
        let call = self
            .connection
            .call(&request, AUTHENTICATE_VERSION, self.timeout);
        let response = call.await.map_err(Failure::Connection)?;
        if let Some(err) = response.error_code.err() {
            let reason = response
                .error_message
                .map_or(err.to_string(), |message| message.to_string());
            return Err(Failure::Rejected(reason));
        }
        let lifetime_ms = u64::try_from(response.session_lifetime_ms).unwrap_or(0);
        self.lifetime = Duration::from_millis(lifetime_ms).min(MAX_LIFETIME);
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec());
        text(response.auth_bytes).map_err(|_| Failure::Invalid("the broker's message is not UTF-8"))
    }

    fn expires_at(&self) -> Option<Instant> {
        (!self.lifetime.is_zero()).then(|| self.started_at + self.lifetime)
    }

    fn failed(&self, failure: Failure, user: &str, hint: &str) -> Error {
        let reason = match failure {
            Failure::Connection(err) => return err,
            Failure::Rejected(reason) => format!("{reason}; {hint}"),
            Failure::Invalid(reason) => reason.to_owned(),
        };
        let mechanism = self.mechanism;
        let address = &self.connection.address;
        Error::Unauthenticated(format!(
            "broker {address}: SASL authentication failed{user} with {mechanism}: {reason}"
        ))
    }
}
