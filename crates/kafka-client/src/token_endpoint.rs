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
use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tls::{TlsFiles, Verification};

use crate::{Error, TokenHints, token::Token};

/// The limit on a response. A broker accepts at most 512 KiB from a client (`sasl.server.max.receive.size`).
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// The part of a token's lifetime in which new connections use it. Less than the part of a session's lifetime after which its
/// connection is replaced: the new connection gets a new token. For the rest of its lifetime the token is the substitute
/// for one that cannot be had.
const USED_LIFETIME_PERCENT: u32 = 70;
/// The assumed lifetime if the server does not give one, and the limit on one that it gives.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(5);
const MAX_LIFETIME: Duration = Duration::from_hours(24);
/// The minimum age of a rejected token that is replaced. A younger one was not revoked, so another one would not help.
const MIN_REPLACED_AGE: Duration = Duration::from_secs(10);

/// An authorization server that issues tokens for a client id and a secret. Clones share the current token.
#[derive(Clone, Debug)]
pub struct TokenEndpoint {
    url: Uri,
    credentials: ClientCredentials,
    tokens: Arc<Tokens>,
}

#[derive(Debug, Default)]
struct Tokens {
    current: Mutex<Option<Issued>>,
    /// Held during a request: connections that are opened at the same time share one token.
    requesting: tokio::sync::Mutex<()>,
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

/// The errors of RFC 6749, section 5.2, that a client's settings cause.
const CLIENT_ERRORS: [&str; 4] = [
    "invalid_client",
    "invalid_grant",
    "invalid_scope",
    "unauthorized_client",
];

/// An error response, RFC 6749, section 5.2.
#[derive(Deserialize)]
struct Failure {
    error: String,
    error_description: Option<String>,
}

impl TokenEndpoint {
    /// Requests tokens from this address.
    pub fn new(TokenUrl(url): TokenUrl, credentials: ClientCredentials) -> Self {
        Self {
            url,
            credentials,
            tokens: Arc::default(),
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
            let _requesting = self.tokens.requesting.lock().await;
            if let Some((token, _)) = self.current(USED_LIFETIME_PERCENT) {
                return Ok(token);
            }
            let issued = self.request_token(hints).await?;
            Ok(self.tokens.current.lock().insert(issued).token.clone())
        });
        let reason = match answer.await {
            Ok(Ok(token)) => return Ok(token),
            Ok(Err(reason)) => reason,
            Err(_) => format!(
                "no response within {} s; {}",
                timeout.as_secs_f64(),
                hints.endpoint
            ),
        };
        let error = format!("failed to get a token from {}: {reason}", self.url);
        let Some((token, expires_in)) = self.current(100) else {
            return Err(Error::Unauthenticated(error));
        };
        tracing::warn!(
            error,
            expires_in_s = expires_in.as_secs(),
            "using the current token until it expires"
        );
        Ok(token)
    }

    /// Returns the current token and the rest of its lifetime, in the first part of its lifetime.
    fn current(&self, percent: u32) -> Option<(Token, Duration)> {
        let current = self.tokens.current.lock();
        let issued = current.as_ref()?;
        let age = issued.at.elapsed();
        let rest = issued.lifetime.saturating_sub(age);
        (age < issued.lifetime * percent / 100).then(|| (issued.token.clone(), rest))
    }

    /// Forgets a token that a broker rejected: the key that it was signed with may have been revoked.
    pub(crate) fn reject(&self, token: &Token) {
        let is_replaced =
            |issued: &mut Issued| issued.token == *token && issued.at.elapsed() >= MIN_REPLACED_AGE;
        self.tokens.current.lock().take_if(is_replaced);
    }

    async fn request_token(&self, hints: &TokenHints) -> Result<Issued, String> {
        let files = TlsFiles {
            ca: self.credentials.ca.clone(),
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
        let secret = self
            .credentials
            .client_secret
            .read()
            .map_err(|err| err.to_string())?;
        let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect();
        // RFC 6749, section 2.3.1: both are encoded, because an id may contain a colon.
        let (id, secret): (String, String) = (
            encode(&self.credentials.client_id),
            encode(secret.expose_secret()),
        );
        let login = format!("Basic {}", BASE64.encode(format!("{id}:{secret}")));
        let mut login = HeaderValue::try_from(login).map_err(|err| err.to_string())?;
        login.set_sensitive(true);
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if let Some(scope) = &self.credentials.scope {
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
    let Ok(Failure {
        error,
        error_description,
    }) = serde_json::from_slice(body)
    else {
        return format!("unexpected response {status}; {}", hints.endpoint);
    };
    let hint = match CLIENT_ERRORS.contains(&&*error) {
        true => hints.client_credentials,
        false => hints.endpoint,
    };
    let description = error_description.map(|description| format!(": {description:?}"));
    format!("{error:?}{}; {hint}", description.unwrap_or_default())
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

    /// Nothing listens at this address.
    const UNREACHABLE: &str = "http://127.0.0.1:1/token";

    /// Returns an endpoint whose current token was issued this long ago, for ten minutes.
    fn endpoint(url: &str, age: Duration) -> (TokenEndpoint, Token) {
        let credentials = ClientCredentials {
            client_id: "client".into(),
            client_secret: "secret".into(),
            scope: None,
            ca: None,
        };
        let endpoint = TokenEndpoint::new(TokenUrl::parse(url).unwrap(), credentials);
        let token = Token::parse("current".into()).unwrap();
        *endpoint.tokens.current.lock() = Some(Issued {
            token: token.clone(),
            at: Instant::now().checked_sub(age).unwrap(),
            lifetime: Duration::from_mins(10),
        });
        (endpoint, token)
    }

    const HINTS: TokenHints = TokenHints {
        file: "",
        client_credentials: "check the client",
        endpoint: "check the URL",
        certificates: tls::Settings {
            ca: "",
            address: "",
            identity: "",
        },
    };

    #[tokio::test]
    async fn the_current_token_is_used_until_it_expires_if_no_new_one_can_be_had() {
        let timeout = Duration::from_secs(5);
        for minutes in [1, 9] {
            let (endpoint, current) = endpoint(UNREACHABLE, Duration::from_mins(minutes));
            let token = endpoint.token(timeout, &HINTS).await.unwrap();
            assert!(token == current, "{minutes}");
        }
        let (endpoint, _) = endpoint(UNREACHABLE, Duration::from_mins(10));
        let err = endpoint.token(timeout, &HINTS).await.err().unwrap();
        assert!(err.to_string().contains("check the URL"), "{err}");
    }

    /// A request of another connection waits for a server that says nothing.
    #[tokio::test]
    async fn a_wait_for_the_request_of_another_connection_is_limited() {
        let timeout = Duration::from_millis(100);
        let (endpoint, current) = endpoint(UNREACHABLE, Duration::from_mins(9));
        let _requesting = endpoint.tokens.requesting.lock().await;
        let token = endpoint.token(timeout, &HINTS);
        let token = tokio::time::timeout(Duration::from_secs(30), token).await;
        assert!(token.unwrap().unwrap() == current);
    }

    #[test]
    fn a_rejected_token_is_forgotten_unless_it_is_new() {
        let (endpoint, current) = endpoint(UNREACHABLE, Duration::from_secs(9));
        endpoint.reject(&current);
        assert!(endpoint.tokens.current.lock().is_some());
        let (endpoint, current) = self::endpoint(UNREACHABLE, Duration::from_secs(10));
        let other = Token::parse("other".into()).unwrap();
        endpoint.reject(&other);
        assert!(endpoint.tokens.current.lock().is_some());
        endpoint.reject(&current);
        assert!(endpoint.tokens.current.lock().is_none());
    }

    #[test]
    fn a_failure_names_the_settings_that_cause_it() {
        for (body, words) in [
            (r#"{"error": "invalid_client"}"#, "; check the client"),
            (
                r#"{"error": "invalid_scope", "error_description": "no"}"#,
                r#""invalid_scope": "no"; check the client"#,
            ),
            (r#"{"error": "Realm does not exist"}"#, "check the URL"),
            ("<html>", "unexpected response 404 Not Found; check the URL"),
        ] {
            let text = describe_failure(StatusCode::NOT_FOUND, body.as_bytes(), &HINTS);
            assert!(text.contains(words), "{text}");
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
