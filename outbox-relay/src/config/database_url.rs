//! Where a database is, as libpq is told: how the connection is encrypted stands in the URL as well.

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

/// The value of `sslrootcert` that means the authorities of the system.
const SYSTEM: &str = "system";

/// The URL of a database. One that stands in a file is read for every connection.
#[derive(Clone, Debug)]
pub struct DatabaseUrl(Secret);

/// What a URL says.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) config: Config,
    pub(crate) files: TlsFiles,
    pub(crate) verification: Verification,
}

impl DatabaseUrl {
    /// Checks a URL that was given itself, or as the name of a file.
    pub(super) fn check(
        problems: &mut Problems,
        name: &str,
        value: Option<String>,
        file: Option<std::path::PathBuf>,
    ) -> Option<Self> {
        let url = Self(Secret::check(problems, name, value, file)?);
        let target = problems.check(name, url.read())?;
        problems.check(name, target.files.load(target.verification))?;
        Some(url)
    }

    /// What it says now. The error says what is wrong with it, and not what stands there.
    pub(crate) fn read(&self) -> Result<Target, String> {
        let url = self.0.read().map_err(|err| err.to_string())?;
        parse(url.expose_secret())
    }
}

impl From<&str> for DatabaseUrl {
    fn from(url: &str) -> Self {
        Self(url.into())
    }
}

/// The settings of libpq about TLS. `tokio-postgres` knows only some values of the first.
#[derive(Default)]
struct TlsSettings<'a> {
    mode: Option<Cow<'a, str>>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

fn parse(url: &str) -> Result<Target, String> {
    let (rest, settings) = take_tls_settings(url)?;
    let invalid = |err| format!("isn't a Postgres URL like postgres://user@host/database: {err}");
    let mut config: Config = rest.parse().map_err(invalid)?;
    if config.get_channel_binding() == ChannelBinding::Require {
        let way_out = "channel_binding=require can't be kept; sslmode=verify-full says who it is";
        return Err(way_out.into());
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
        // With an authority at hand libpq asks it.
        "require" if has_authority => (SslMode::Require, Verification::Authority),
        "require" => (SslMode::Require, Verification::Nothing),
        "verify-ca" => (SslMode::Require, Verification::Authority),
        "verify-full" => (SslMode::Require, Verification::Name),
        _ => {
            let known = "disable, prefer, require, verify-ca, verify-full";
            return Err(format!("sslmode isn't one of {known}"));
        }
    };
    let has_files = has_authority || settings.certificate.is_some() || settings.key.is_some();
    if ssl_mode != SslMode::Require && has_files {
        return Err(format!(
            "sslmode={mode} can do without TLS, which the certificates ask for; set \
             sslmode=verify-full"
        ));
    }
    // Everybody gets a certificate from some authority of the system, for a name of their own.
    if verification == Verification::Authority && (is_system || !has_authority) {
        return Err(format!(
            "sslmode={mode} needs a file with the CA in sslrootcert; or set sslmode=verify-full"
        ));
    }
    let identity = match (settings.certificate, settings.key) {
        (Some(certificate), Some(key)) => Some(Identity {
            certificate: certificate.into(),
            key: key.into(),
        }),
        (None, None) => None,
        _ => return Err("sslcert and sslkey go together; one of them is missing".into()),
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

/// Takes what is about TLS out of the URL.
fn take_tls_settings(url: &str) -> Result<(String, TlsSettings<'_>), String> {
    // A password before the host may hold any character but this.
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
            decoded.map_err(|_| format!("{name} isn't UTF-8"))
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
    fn modes_are_those_of_libpq() {
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
            let target = parse(&format!("postgres://u:p?w&x=y@host:1/db{query}")).unwrap();
            assert_eq!(target.config.get_ssl_mode(), mode, "{query}");
            assert_eq!(target.verification, verification, "{query}");
            assert_eq!(target.config.get_password(), Some("p?w&x=y".as_bytes()));
            let file = query.contains(ca).then(|| "/etc/my ca.pem".into());
            assert_eq!(target.files.ca, file, "{query}");
        }
        let target = parse("host=a user=b dbname=c sslmode=require").unwrap();
        assert_eq!(target.config.get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn what_would_be_less_than_asked_for_is_rejected() {
        for (query, reason) in [
            ("sslmode=allow", "isn't one of"),
            ("sslrootcert=/ca.pem", "sslmode=prefer can do without TLS"),
            (
                "sslmode=disable&sslcert=a&sslkey=b",
                "sslmode=disable can do without TLS",
            ),
            ("sslmode=verify-ca", "needs a file with the CA"),
            (
                "sslmode=require&sslrootcert=system",
                "needs a file with the CA",
            ),
            ("sslmode=verify-full&sslcert=a", "go together"),
            ("channel_binding=require", "can't be kept"),
            ("sslmod=verify-full", "isn't a Postgres URL"),
        ] {
            let rejected = parse(&format!("postgres://u:hunter2@host/db?{query}")).unwrap_err();
            assert!(rejected.contains(reason), "{query}: {rejected}");
            assert!(!rejected.contains("hunter2"), "{rejected}");
        }
    }
}
