//! Database URLs with libpq's TLS parameters: `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use cli::{Problems, Secret};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret as _;
use tokio_postgres::{
    Config,
    config::{Host, SslMode},
};

use tls::{Identity, TlsFiles, Verification};

const ENCODING_HINT: &str = "in a password, percent-encode @ : / ? # % as %40 %3A %2F %3F %23 %25";
/// The time for which a pooler that keeps sessions apart is not tested again. It may be restarted in another mode.
const VERIFIED_FOR: Duration = Duration::from_secs(2);
/// The value of `sslrootcert` for the system's certificate authorities.
const SYSTEM: &str = "system";

/// The URL of a database. A URL in a file is read again for each connection.
#[derive(Clone, Debug)]
pub struct DatabaseUrl {
    url: Secret,
    /// The last time at which a pooler was found that keeps sessions apart.
    pooler_verified_at: Arc<Mutex<Option<Instant>>>,
}

/// A parsed URL.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) config: Config,
    pub(crate) encryption: Encryption,
    pub(crate) files: TlsFiles,
    pub(crate) verification: Verification,
}

/// The use of TLS: what remains of `sslmode` besides the verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    Disable,
    Prefer,
    Require,
}

impl DatabaseUrl {
    /// Validates a URL that is given as a value or as the path of a file, and adds its mistakes.
    pub fn parse(
        problems: &mut Problems,
        name: &str,
        value: Option<String>,
        file: Option<std::path::PathBuf>,
    ) -> Option<Self> {
        let url = Self::from(Secret::parse(problems, name, value, file)?);
        problems.check(name, url.validate())?;
        Some(url)
    }

    /// Validates the current URL and the files that it names.
    ///
    /// # Errors
    /// A description of the mistake. It contains neither the URL nor a password.
    pub fn validate(&self) -> Result<(), String> {
        let target = self.read()?;
        let loaded = target.files.load(target.verification);
        loaded.map(|_| ()).map_err(|err| err.to_string())
    }

    /// Rejects a Unix socket, for which tokio-postgres has no hook: errors would have no SQLSTATE, and responses no limit.
    ///
    /// # Errors
    /// As for [`validate`](Self::validate).
    pub fn ensure_tcp(&self) -> Result<(), String> {
        if has_unix_socket(&self.read()?.config) {
            return Err("must name a TCP host; Unix sockets are not supported".into());
        }
        Ok(())
    }

    /// Returns the name of the database; by default that of the user.
    ///
    /// # Errors
    /// As for [`validate`](Self::validate).
    pub fn dbname(&self) -> Result<String, String> {
        let config = self.read()?.config;
        let name = config.get_dbname().or(config.get_user());
        Ok(name.unwrap_or_default().to_owned())
    }

    pub(crate) fn has_verified_pooler(&self) -> bool {
        let at = *self.pooler_verified_at.lock();
        at.is_some_and(|at| at.elapsed() < VERIFIED_FOR)
    }

    pub(crate) fn set_verified_pooler(&self) {
        *self.pooler_verified_at.lock() = Some(Instant::now());
    }

    /// Reads and parses the current URL. The error does not contain it.
    pub(crate) fn read(&self) -> Result<Target, String> {
        let url = self.url.read().map_err(|err| err.to_string())?;
        parse_url(url.expose_secret())
    }
}

impl From<Secret> for DatabaseUrl {
    fn from(url: Secret) -> Self {
        Self {
            url,
            pooler_verified_at: Arc::default(),
        }
    }
}

impl From<&str> for DatabaseUrl {
    fn from(url: &str) -> Self {
        Secret::from(url).into()
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
    // The message of the parser names a parameter, and never a value.
    let invalid = |err| {
        format!(
            "invalid Postgres URL, must be like postgres://user:password@host:5432/database: {}; {ENCODING_HINT}",
            cli::chain(&err)
        )
    };
    let mut config: Config = rest.parse().map_err(invalid)?;
    complete_hosts(&mut config)?;
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
    let (encryption, verification) = match mode {
        "disable" => (Encryption::Disable, Verification::Nothing),
        "prefer" => (Encryption::Prefer, Verification::Nothing),
        // As libpq: a CA file turns `require` into `verify-ca`.
        "require" if has_authority => (Encryption::Require, Verification::Authority),
        "require" => (Encryption::Require, Verification::Nothing),
        "verify-ca" => (Encryption::Require, Verification::Authority),
        "verify-full" => (Encryption::Require, Verification::Name),
        _ => {
            let known = "disable, prefer, require, verify-ca, verify-full";
            return Err(format!("invalid sslmode; must be one of {known}"));
        }
    };
    let has_files = has_authority || settings.certificate.is_some() || settings.key.is_some();
    if encryption != Encryption::Require && has_files {
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
    Ok(Target {
        config,
        encryption,
        files: TlsFiles {
            ca: settings.root.filter(|_| !is_system).map(Into::into),
            identity,
        },
        verification,
    })
}

/// Makes each host usable for TLS, which needs a name.
fn complete_hosts(config: &mut Config) -> Result<(), String> {
    if config.get_hosts().is_empty() {
        for address in config.get_hostaddrs().to_vec() {
            config.host(address.to_string());
        }
    }
    // A part of a password that is not percent-encoded. An error would show it as the address.
    let is_name = |host: &&Host| match host {
        Host::Tcp(name) => name
            .chars()
            .all(|c| c.is_alphanumeric() || "-._:%".contains(c)),
        _ => true,
    };
    if !config.get_hosts().iter().all(|host| is_name(&host)) {
        return Err(format!("invalid host; {ENCODING_HINT}"));
    }
    let is_socket = |host: &&Host| is_unix_socket(host);
    match config.get_hosts().iter().filter(is_socket).count() {
        _ if config.get_hosts().is_empty() => {
            Err("must name a host, as in postgres://user:password@host:5432/database".into())
        }
        0 => Ok(()),
        sockets if sockets == config.get_hosts().len() => Ok(()),
        _ => Err("hosts and directories of Unix sockets can't be mixed".into()),
    }
}

fn is_unix_socket(host: &Host) -> bool {
    !matches!(host, Host::Tcp(_))
}

pub(crate) fn has_unix_socket(config: &Config) -> bool {
    config.get_hosts().iter().any(is_unix_socket)
}

/// Parameters of other clients that are often found in URLs, such as Prisma's.
const NOT_IN_LIBPQ: [&str; 6] = [
    "connection_limit",
    "pgbouncer",
    "pool_timeout",
    "schema",
    "socket_timeout",
    "statement_cache_size",
];

/// Returns true for a libpq parameter that tokio-postgres does not know and whose value asks for what it does anyway.
fn is_without_effect(name: &str, value: &str) -> bool {
    match name {
        "gssencmode" => ["disable", "prefer"].contains(&value),
        "client_encoding" => ["utf8", "utf-8", "unicode"].contains(&&*value.to_lowercase()),
        "sslcompression" => value == "0",
        "ssl_min_protocol_version" => ["TLSv1", "TLSv1.1", "TLSv1.2"].contains(&value),
        "krbsrvname" | "fallback_application_name" => true,
        _ => false,
    }
}

/// Splits the TLS parameters off the URL, and removes those without effect.
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
            _ if is_without_effect(name, &decoded()?) => {}
            _ if NOT_IN_LIBPQ.contains(&name) => {
                return Err(format!(
                    "unsupported parameter {name} in the Postgres URL, which is another client's; remove it"
                ));
            }
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
            ("", Encryption::Prefer, Verification::Nothing),
            (
                "?sslmode=disable",
                Encryption::Disable,
                Verification::Nothing,
            ),
            (
                "?sslmode=require",
                Encryption::Require,
                Verification::Nothing,
            ),
            (
                &format!("?sslmode=require&{ca}"),
                Encryption::Require,
                Verification::Authority,
            ),
            (
                &format!("?{ca}&sslmode=verify-ca"),
                Encryption::Require,
                Verification::Authority,
            ),
            (
                "?sslmode=verify-full",
                Encryption::Require,
                Verification::Name,
            ),
            (
                "?sslmode=verify-full&sslrootcert=system",
                Encryption::Require,
                Verification::Name,
            ),
        ] {
            let target = parse_url(&format!("postgres://u:p?w&x=y@host:1/db{query}")).unwrap();
            assert_eq!(target.encryption, mode, "{query}");
            assert_eq!(target.verification, verification, "{query}");
            assert_eq!(target.config.get_password(), Some("p?w&x=y".as_bytes()));
            let file = query.contains(ca).then(|| "/etc/my ca.pem".into());
            assert_eq!(target.files.ca, file, "{query}");
        }
        let target = parse_url("host=a user=b dbname=c sslmode=require").unwrap();
        assert_eq!(target.encryption, Encryption::Require);
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
            ("sslmod=verify-full", "invalid Postgres URL"),
        ] {
            let rejected = parse_url(&format!("postgres://u:hunter2@host/db?{query}")).unwrap_err();
            assert!(rejected.contains(reason), "{query}: {rejected}");
            assert!(!rejected.contains("hunter2"), "{rejected}");
        }
    }

    #[test]
    fn parameters_without_effect_are_accepted_and_others_are_named() {
        for query in [
            "gssencmode=disable",
            "client_encoding=UTF8&application_name=a&gssencmode=prefer",
            "sslcompression=0&sslmode=require&ssl_min_protocol_version=TLSv1.2",
        ] {
            parse_url(&format!("postgres://u:p@host/db?{query}")).unwrap();
        }
        for (query, name) in [
            ("gssencmode=require", "gssencmode"),
            ("client_encoding=LATIN1", "client_encoding"),
            (
                "ssl_min_protocol_version=TLSv1.3",
                "ssl_min_protocol_version",
            ),
            ("sslmode=require&pgbouncer=true", "pgbouncer"),
        ] {
            let rejected = parse_url(&format!("postgres://u:hunter2@host/db?{query}")).unwrap_err();
            assert!(rejected.contains(name), "{query}: {rejected}");
            assert!(!rejected.contains("hunter2"), "{rejected}");
        }
    }

    #[test]
    fn a_part_of_a_password_is_not_taken_for_a_host() {
        for url in [
            "postgres://postgres:SEK@RIT@host:1/db",
            "postgres:///db?user=a@b&password=SEKRIT&host=127.0.0.1",
        ] {
            let rejected = parse_url(url).unwrap_err();
            assert!(!rejected.contains("RIT"), "{rejected}");
        }
    }
}
