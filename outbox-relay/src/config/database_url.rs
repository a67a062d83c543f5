//! Database URLs with libpq's TLS parameters: `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.

use std::borrow::Cow;

use cli::Problems;
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret as _;
use tokio_postgres::{
    Config,
    config::{ChannelBinding, SslMode},
};

use super::Secret;
use crate::tls::{Identity, TlsFiles, Verification};

/// The value of `sslrootcert` for the system's certificate authorities.
const SYSTEM: &str = "system";

/// The URL of a database. A URL in a file is read again for each connection.
#[derive(Clone, Debug)]
pub struct DatabaseUrl(Secret);

/// A parsed URL.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) config: Config,
    pub(crate) files: TlsFiles,
    pub(crate) verification: Verification,
}

impl DatabaseUrl {
    /// Validates a URL that is given as a value or as the path of a file.
    pub(super) fn parse(
        problems: &mut Problems,
        name: &str,
        value: Option<String>,
        file: Option<std::path::PathBuf>,
    ) -> Option<Self> {
        let url = Self(Secret::parse(problems, name, value, file)?);
        let target = problems.check(name, url.read())?;
        problems.check(name, target.files.load(target.verification))?;
        Some(url)
    }

    /// Reads and parses the current URL. The error does not contain it.
    pub(crate) fn read(&self) -> Result<Target, String> {
        let url = self.0.read().map_err(|err| err.to_string())?;
        parse_url(url.expose_secret())
    }
}

impl From<&str> for DatabaseUrl {
    fn from(url: &str) -> Self {
        Self(url.into())
    }
}

/// libpq's TLS parameters. `tokio-postgres` supports only some values of `sslmode`.
#[derive(Default)]
struct TlsSettings<'a> {
    mode: Option<Cow<'a, str>>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

fn parse_url(url: &str) -> Result<Target, String> {
    let (rest, settings) = take_tls_settings(url)?;
    let invalid =
        |err| format!("invalid Postgres URL, must be like postgres://user@host/database: {err}");
    let mut config: Config = rest.parse().map_err(invalid)?;
    if config.get_channel_binding() == ChannelBinding::Require {
        return Err("channel_binding=require is not supported; use sslmode=verify-full".into());
    }
    let mode = settings
        .mode
        .as_deref()
        .unwrap_or(match config.get_ssl_mode() {
            SslMode::Disable => "disable",
            SslMode::Require => "require",
            _ => "prefer",
        });
    let has_authority = settings.root.is_some();
    let is_system = settings.root.as_deref() == Some(SYSTEM);
    let (ssl_mode, verification) = match mode {
        "disable" => (SslMode::Disable, Verification::Nothing),
        "prefer" => (SslMode::Prefer, Verification::Nothing),
        // As libpq: a CA file turns `require` into `verify-ca`.
        "require" if has_authority => (SslMode::Require, Verification::Authority),
        "require" => (SslMode::Require, Verification::Nothing),
        "verify-ca" => (SslMode::Require, Verification::Authority),
        "verify-full" => (SslMode::Require, Verification::Name),
        _ => {
            let known = "disable, prefer, require, verify-ca, verify-full";
            return Err(format!("invalid sslmode; must be one of {known}"));
        }
    };
    let has_files = has_authority || settings.certificate.is_some() || settings.key.is_some();
    if ssl_mode != SslMode::Require && has_files {
        return Err(format!(
            "sslmode={mode} permits plaintext although certificates are set; use sslmode=verify-full"
        ));
    }
    // A system authority issues certificates to anybody, so `verify-ca` with it would prove nothing.
    if verification == Verification::Authority && (is_system || !has_authority) {
        return Err(format!(
            "sslmode={mode} requires a CA file in sslrootcert; set it or use sslmode=verify-full"
        ));
    }
    let identity = match (settings.certificate, settings.key) {
        (Some(certificate), Some(key)) => Some(Identity {
            certificate: certificate.into(),
            key: key.into(),
        }),
        (None, None) => None,
        _ => return Err("sslcert and sslkey must be set together".into()),
    };
    config.ssl_mode(ssl_mode);
    Ok(Target {
        config,
        files: TlsFiles {
            ca: settings.root.filter(|_| !is_system).map(Into::into),
            identity,
        },
        verification,
    })
}

/// Splits the TLS parameters off the URL.
fn take_tls_settings(url: &str) -> Result<(String, TlsSettings<'_>), String> {
    // The password can contain any character except this.
    let host = url.find('@').unwrap_or(0);
    let Some(query) = url[host..].find('?').map(|index| host + index) else {
        return Ok((url.to_owned(), TlsSettings::default()));
    };
    let mut settings = TlsSettings::default();
    let mut others = Vec::new();
    for setting in url[query + 1..].split('&') {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        let decoded = || {
            let decoded = percent_decode_str(value).decode_utf8();
            decoded.map_err(|_| format!("invalid {name}: not UTF-8"))
        };
        match name {
            "sslmode" => settings.mode = Some(decoded()?),
            "sslrootcert" => settings.root = Some(decoded()?.into_owned()),
            "sslcert" => settings.certificate = Some(decoded()?.into_owned()),
            "sslkey" => settings.key = Some(decoded()?.into_owned()),
            _ => others.push(setting),
        }
    }
    let mut rest = url[..query].to_owned();
    if !others.is_empty() {
        rest.push('?');
        rest += &others.join("&");
    }
    Ok((rest, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sslmode_has_the_meaning_of_libpq() {
        let ca = "sslrootcert=/etc/my%20ca.pem";
        for (query, mode, verification) in [
            ("", SslMode::Prefer, Verification::Nothing),
            ("?sslmode=disable", SslMode::Disable, Verification::Nothing),
            ("?sslmode=require", SslMode::Require, Verification::Nothing),
            (
                &format!("?sslmode=require&{ca}"),
                SslMode::Require,
                Verification::Authority,
            ),
            (
                &format!("?{ca}&sslmode=verify-ca"),
                SslMode::Require,
                Verification::Authority,
            ),
            ("?sslmode=verify-full", SslMode::Require, Verification::Name),
            (
                "?sslmode=verify-full&sslrootcert=system",
                SslMode::Require,
                Verification::Name,
            ),
        ] {
            let target = parse_url(&format!("postgres://u:p?w&x=y@host:1/db{query}")).unwrap();
            assert_eq!(target.config.get_ssl_mode(), mode, "{query}");
            assert_eq!(target.verification, verification, "{query}");
            assert_eq!(target.config.get_password(), Some("p?w&x=y".as_bytes()));
            let file = query.contains(ca).then(|| "/etc/my ca.pem".into());
            assert_eq!(target.files.ca, file, "{query}");
        }
        let target = parse_url("host=a user=b dbname=c sslmode=require").unwrap();
        assert_eq!(target.config.get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn settings_weaker_than_requested_are_rejected() {
        for (query, reason) in [
            ("sslmode=allow", "invalid sslmode; must be one of"),
            ("sslrootcert=/ca.pem", "sslmode=prefer permits plaintext"),
            (
                "sslmode=disable&sslcert=a&sslkey=b",
                "sslmode=disable permits plaintext",
            ),
            ("sslmode=verify-ca", "requires a CA file"),
            ("sslmode=require&sslrootcert=system", "requires a CA file"),
            ("sslmode=verify-full&sslcert=a", "must be set together"),
            ("channel_binding=require", "is not supported"),
            ("sslmod=verify-full", "invalid Postgres URL"),
        ] {
            let rejected = parse_url(&format!("postgres://u:hunter2@host/db?{query}")).unwrap_err();
            assert!(rejected.contains(reason), "{query}: {rejected}");
            assert!(!rejected.contains("hunter2"), "{rejected}");
        }
    }
}
