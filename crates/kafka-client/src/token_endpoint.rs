//! The client credentials grant of OAuth 2.0 (RFC 6749, section 4.4).

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use cli::Secret;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tls::{TlsFiles, Verification};
use tokio::sync::Mutex;

use crate::{Error, TokenHints, token::Token};

/// The limit on a response. A broker accepts at most 512 KiB from a client (`sasl.server.max.receive.size`).
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// The part of a token's lifetime in which new connections use it.
const USED_LIFETIME_PERCENT: u32 = 80;
/// The assumed lifetime if the server does not give one, and the limit on one that it gives.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(5);
const MAX_LIFETIME: Duration = Duration::from_hours(24);
/// The minimum age of a rejected token that is replaced. A younger one was not revoked, so another one would not help.
const MIN_REPLACED_AGE: Duration = Duration::from_secs(10);

/// An authorization server that issues tokens for a client id and a secret. Clones share the current token.
#[derive(Clone, Debug)]
pub struct TokenEndpoint {
    url: Uri,
    ca: Option<PathBuf>,
    client_id: String,
    client_secret: Secret,
    scope: Option<String>,
    current: Arc<Mutex<Option<Issued>>>,
}

/// The address of a [`TokenEndpoint`].
#[derive(Clone, Debug)]
pub struct TokenUrl(Uri);

impl TokenUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// If it is not an absolute URL with `https` or `http`, or it contains a password.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let parsed = url.parse::<Uri>().ok();
        let parsed = parsed.filter(|url| {
            let is_http = matches!(url.scheme_str(), Some("https" | "http"));
            let has_password = url.authority().is_some_and(|it| it.as_str().contains('@'));
            is_http && !has_password
        });
        let reason = "invalid URL; must be https://host/path without a password";
        parsed.map(Self).ok_or(reason)
    }
}

/// The settings of a [`TokenEndpoint`].
#[derive(Clone, Debug)]
pub struct ClientCredentials {
    /// The client's id at the authorization server.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: Secret,
    /// The requested scope: names separated by spaces.
    pub scope: Option<String>,
    /// The CA certificates that the server's certificate is verified with; by default those of the operating system.
    pub ca: Option<PathBuf>,
}

struct Issued {
    token: Token,
    at: Instant,
    lifetime: Duration,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { at, lifetime, .. } = self;
        f.debug_struct("Issued")
            .field("at", at)
            .field("lifetime", lifetime)
            .finish_non_exhaustive()
    }
}

/// A successful response, RFC 6749, section 5.1.
#[derive(Deserialize)]
struct Success {
    access_token: SecretString,
    /// Seconds. Some servers send a string.
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// An error response, RFC 6749, section 5.2.
#[derive(Deserialize)]
struct Failure {
    error: String,
    error_description: Option<String>,
}

impl TokenEndpoint {
    /// Requests tokens from this address.
    pub fn new(TokenUrl(url): TokenUrl, credentials: ClientCredentials) -> Self {
        let ClientCredentials {
            client_id,
            client_secret,
            scope,
            ca,
        } = credentials;
        Self {
            url,
            ca,
            client_id,
            client_secret,
            scope,
            current: Arc::default(),
        }
    }

    /// Returns true if the client's secret is sent without encryption.
    pub(crate) fn is_plaintext(&self) -> bool {
        self.url.scheme_str() == Some("http")
    }

    /// Returns the current token, or requests a new one. Waits for at most `timeout`.
    pub(crate) async fn token(
        &self,
        timeout: Duration,
        hints: &TokenHints,
    ) -> Result<Token, Error> {
        let answer = tokio::time::timeout(timeout, async {
            // Held during the request: connections that are opened at the same time share one token.
            let mut current = self.current.lock().await;
            if let Some(issued) = &*current
                && issued.at.elapsed() < issued.lifetime * USED_LIFETIME_PERCENT / 100
            {
                return Ok(issued.token.clone());
            }
            let issued = self.request_token(hints).await?;
            Ok(current.insert(issued).token.clone())
        });
        let failed = match answer.await {
            Ok(Ok(token)) => return Ok(token),
            Ok(Err(reason)) => reason,
            Err(_) => format!(
                "no response within {} s; {}",
                timeout.as_secs_f64(),
                hints.endpoint
            ),
        };
        Err(Error::Unavailable(format!(
            "failed to get a token from {}: {failed}",
            self.url
        )))
    }

    /// Forgets a token that a broker rejected: the key that it was signed with may have been revoked.
    pub(crate) async fn reject(&self, token: &Token) {
        let is_replaced =
            |issued: &mut Issued| issued.token == *token && issued.at.elapsed() >= MIN_REPLACED_AGE;
        self.current.lock().await.take_if(is_replaced);
    }

    async fn request_token(&self, hints: &TokenHints) -> Result<Issued, String> {
        let files = TlsFiles {
            ca: self.ca.clone(),
            identity: None,
        };
        let tls = files.load(Verification::Name);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.map_err(|err| err.to_string())?)
            .https_or_http()
            .enable_http1()
            .build();
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
        let at = Instant::now();
        let response = client.request(self.request()?).await.map_err(|err| {
            let hint = tls_hint(&err, hints);
            let hint = hint.unwrap_or_else(|| hints.endpoint.to_owned());
            format!("{}; {hint}", innermost(&err))
        })?;
        let status = response.status();
        let body = read_body(response).await?;
        if status != StatusCode::OK {
            return Err(describe_failure(status, &body, hints));
        }
        // serde's message could quote the token.
        let success: Success = serde_json::from_slice(&body)
            .map_err(|_| "the response is not JSON with an access_token".to_owned())?;
        Ok(Issued {
            token: Token::parse(success.access_token)?,
            at,
            lifetime: parse_lifetime(&success.expires_in),
        })
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, String> {
        let secret = self.client_secret.read().map_err(|err| err.to_string())?;
        let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect();
        // RFC 6749, section 2.3.1: both are encoded, because an id may contain a colon.
        let (id, secret): (String, String) =
            (encode(&self.client_id), encode(secret.expose_secret()));
        let login = format!("Basic {}", BASE64.encode(format!("{id}:{secret}")));
        let mut login = HeaderValue::try_from(login).map_err(|err| err.to_string())?;
        login.set_sensitive(true);
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if let Some(scope) = &self.scope {
            form.append_pair("scope", scope);
        }
        Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(AUTHORIZATION, login)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.finish().into())
            .map_err(|err| err.to_string())
    }
}

async fn read_body(response: Response<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES);
    let body = body.collect().await.map_err(|err| err.to_string())?;
    Ok(body.to_bytes())
}

/// Describes a response other than 200. Redirects are not followed: they could send the secret elsewhere.
fn describe_failure(status: StatusCode, body: &[u8], hints: &TokenHints) -> String {
    let hint = hints.client_credentials;
    match serde_json::from_slice(body) {
        Ok(Failure {
            error,
            error_description: Some(description),
        }) => format!("{error:?}: {description:?}; {hint}"),
        Ok(Failure { error, .. }) => format!("{error:?}; {hint}"),
        Err(_) => format!("unexpected response {status}; {}", hints.endpoint),
    }
}

fn parse_lifetime(expires_in: &serde_json::Value) -> Duration {
    let seconds = match expires_in {
        serde_json::Value::String(text) => text.parse().ok(),
        value => value.as_f64(),
    };
    let limited = seconds.map(|seconds: f64| seconds.min(MAX_LIFETIME.as_secs_f64()));
    let given = limited.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    given.unwrap_or(DEFAULT_LIFETIME)
}

fn tls_hint(err: &(dyn std::error::Error + 'static), hints: &TokenHints) -> Option<String> {
    let mut chain = std::iter::successors(Some(err), |err| err.source());
    chain.find_map(|err| tls::hint_for(err, &hints.certificates))
}

/// Returns the cause of an error, which hyper's own text does not contain.
fn innermost(err: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(err), |err| err.source());
    chain.last().unwrap_or(err).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn any_lifetime_is_limited() {
        for (given, lifetime) in [
            (json!(3600), Duration::from_hours(1)),
            (json!("3600"), Duration::from_hours(1)),
            (json!(0), Duration::ZERO),
            (json!(1e300), MAX_LIFETIME),
            (json!(u64::MAX), MAX_LIFETIME),
            (json!(-1), DEFAULT_LIFETIME),
            (json!("soon"), DEFAULT_LIFETIME),
            (json!(null), DEFAULT_LIFETIME),
        ] {
            assert_eq!(parse_lifetime(&given), lifetime, "{given}");
        }
    }

    #[test]
    fn only_absolute_http_urls_without_passwords_are_accepted() {
        for url in ["https://login.example/token", "http://[::1]:8080/"] {
            assert!(TokenUrl::parse(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "/token",
            "login.example/token",
            "ftp://login.example/",
            "https://user:secret@login.example/",
        ] {
            assert!(TokenUrl::parse(url).is_err(), "{url}");
        }
    }
}
