//! Bearer tokens for OAUTHBEARER (RFC 6750, RFC 7628, KIP-255).

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL};
use cli::Secret;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::{Error, TokenEndpoint, TokenHints};

/// The source of the tokens of OAUTHBEARER.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// A file that another program renews, such as a projected service account token of Kubernetes. It is read for every
    /// connection.
    File(PathBuf),
    /// An OAuth 2.0 authorization server.
    Endpoint(TokenEndpoint),
}

impl TokenSource {
    pub(crate) async fn token(
        &self,
        timeout: Duration,
        hints: &TokenHints,
    ) -> Result<Token, Error> {
        match self {
            Self::File(file) => {
                let text = Secret::File(file.clone()).read();
                let text = text.map_err(|err| Error::Unauthenticated(err.to_string()))?;
                let invalid =
                    |reason| Error::Unauthenticated(format!("{}: {reason}", file.display()));
                Token::parse(text).map_err(invalid)
            }
            Self::Endpoint(endpoint) => endpoint.token(timeout, hints).await,
        }
    }

    /// Handles that a broker rejected a token.
    pub(crate) fn reject(&self, token: &Token) {
        if let Self::Endpoint(endpoint) = self {
            endpoint.reject(token);
        }
    }

    pub(crate) fn hint<'a>(&self, hints: &'a TokenHints) -> &'a str {
        match self {
            Self::File(_) => hints.file,
            Self::Endpoint(_) => hints.client_credentials,
        }
    }
}

/// A token, opaque to clients except for the reason of a failure.
#[derive(Clone)]
pub(crate) struct Token(SecretString);

impl Token {
    /// Parses a token: without this check, its text could add fields to the message that contains it.
    pub(crate) fn parse(text: SecretString) -> Result<Self, &'static str> {
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        match text.expose_secret() {
            "" => Err("contains no token"),
            token if token.bytes().all(is_valid) => Ok(Self(text)),
            _ => Err("invalid token; must consist of letters, digits and -._~+/="),
        }
    }

    /// Returns true if the token is a JWT (RFC 7519) that has expired, by this machine's clock.
    pub(crate) fn has_expired(&self) -> bool {
        self.expires_at()
            .is_some_and(|expires_at| expires_at <= SystemTime::now())
    }

    fn expires_at(&self) -> Option<SystemTime> {
        #[derive(Deserialize)]
        struct Claims {
            exp: f64,
        }
        let claims = self.0.expose_secret().split('.').nth(1)?;
        let claims = BASE64_URL.decode(claims).ok()?;
        let Claims { exp } = serde_json::from_slice(&claims).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(exp).ok()?)
    }

    /// Returns the client's message (RFC 7628, section 3.1; KIP-342 for the extensions).
    pub(crate) fn client_message(&self, extensions: &Extensions) -> String {
        let mut message = format!("n,,\u{1}auth=Bearer {}\u{1}", self.0.expose_secret());
        for (name, value) in &extensions.0 {
            message.extend([name, "=", value, "\u{1}"]);
        }
        message.push('\u{1}');
        message
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }
}

/// SASL extensions: names and values that a broker expects with a token, such as `logicalCluster`.
#[derive(Clone, Debug, Default)]
pub struct Extensions(BTreeMap<String, String>);

impl Extensions {
    /// Validates names and values.
    ///
    /// # Errors
    /// If a name or a value contains other characters than RFC 7628 allows, or a name is `auth`.
    pub fn parse(given: BTreeMap<String, String>) -> Result<Self, String> {
        for (name, value) in &given {
            let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic());
            if !is_name || name == "auth" {
                return Err(format!(
                    "invalid name {name:?}; must consist of letters, and not be auth"
                ));
            }
            let is_text = |byte: u8| (b' '..=b'~').contains(&byte);
            if value.is_empty() || !value.bytes().all(is_text) {
                return Err(format!(
                    "invalid value of {name}; must consist of printable ASCII characters"
                ));
            }
        }
        Ok(Self(given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_the_rfc_is_built() {
        // RFC 7628, section 4.1, without the authorization identity.
        let token = Token::parse("vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==".into()).unwrap();
        let given = BTreeMap::from([("host", "server.example.com"), ("port", "143")]);
        let given = given.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
        let extensions = Extensions::parse(given.collect()).unwrap();
        assert_eq!(
            token.client_message(&extensions),
            "n,,\u{1}auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\u{1}\
             host=server.example.com\u{1}port=143\u{1}\u{1}"
        );
    }

    #[test]
    fn text_that_would_add_fields_to_the_message_is_rejected() {
        for text in ["", "a b", "a\u{1}auth=Bearer b", "a\nb", "é"] {
            assert!(Token::parse(text.into()).is_err(), "{text:?}");
        }
        for (name, value) in [
            ("", "v"),
            ("auth", "v"),
            ("a=b", "v"),
            ("name", ""),
            ("name", "v\u{1}auth=x"),
        ] {
            let given = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert!(Extensions::parse(given).is_err(), "{name:?} {value:?}");
        }
    }

    #[test]
    fn the_expiry_of_a_jwt_is_found() {
        let jwt = |claims: &str| {
            let token = format!("e30.{}.c2ln", BASE64_URL.encode(claims));
            Token::parse(token.into()).unwrap()
        };
        assert!(jwt(r#"{"exp": 1000}"#).has_expired());
        for claims in [
            r#"{"exp": 99999999999}"#,
            r#"{"exp": 1e300}"#,
            r#"{"exp": -1}"#,
            r#"{"exp": "1000"}"#,
            "{}",
            "",
        ] {
            assert!(!jwt(claims).has_expired(), "{claims}");
        }
        let opaque = Token::parse("opaque".into()).unwrap();
        assert!(!opaque.has_expired());
    }
}
