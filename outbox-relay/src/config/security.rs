//! The tables `[kafka.tls]` and `[kafka.sasl]`: how brokers are reached, and who asks them.

use std::path::PathBuf;

use cli::Problems;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::Secret;
use crate::tls::{Identity, TlsFiles, Verification};

/// How brokers are reached, and who asks them.
#[derive(Clone, Debug, Default)]
pub struct KafkaSecurity {
    /// None: in plain text.
    pub tls: Option<TlsFiles>,
    /// None: without a name, or by the name in the certificate.
    pub sasl: Option<Sasl>,
}

/// A login.
#[derive(Clone, Debug)]
pub struct Sasl {
    /// How the password is shown.
    pub mechanism: Mechanism,
    /// Who asks.
    pub username: String,
    /// What proves it.
    pub password: Secret,
}

/// How a password is shown to a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// As it is.
    Plain,
    /// By a proof that tells nothing of it.
    ScramSha256,
    /// The same, with the longer hash.
    ScramSha512,
}

impl Mechanism {
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::ScramSha256, Self::ScramSha512];

    /// As brokers call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    ca_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SaslTable {
    mechanism: Option<String>,
    username: Option<String>,
    password: Option<SecretString>,
    password_file: Option<PathBuf>,
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

impl KafkaSecurity {
    /// Whether whoever listens on the way learns the password.
    pub(crate) fn shows_the_password(&self) -> bool {
        let sasl = self.sasl.as_ref();
        self.tls.is_none() && sasl.is_some_and(|sasl| sasl.mechanism == Mechanism::Plain)
    }

    pub(super) fn check(
        tls: Option<TlsTable>,
        sasl: Option<SaslTable>,
        variable: Variable<'_>,
        problems: &mut Problems,
    ) -> Self {
        Self {
            tls: check_tls(tls, variable, problems),
            sasl: check_sasl(sasl, variable, problems),
        }
    }
}

/// A table, even an empty one, asks for TLS, and so does any of the variables.
fn check_tls(
    table: Option<TlsTable>,
    variable: Variable<'_>,
    problems: &mut Problems,
) -> Option<TlsFiles> {
    let is_asked_for = table.is_some();
    let table = table.unwrap_or_default();
    let file = |name: &str, given: Option<PathBuf>| {
        let variable = variable(&format!("OUTBOX_RELAY_KAFKA_TLS_{name}"));
        variable.map(PathBuf::from).or(given)
    };
    let ca = file("CA_FILE", table.ca_file);
    let certificate = file("CERTIFICATE_FILE", table.certificate_file);
    let key = file("KEY_FILE", table.key_file);
    if !is_asked_for && ca.is_none() && certificate.is_none() && key.is_none() {
        return None;
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            problems.add(
                "kafka.tls.key_file",
                "is missing: certificate_file needs it",
            );
            None
        }
        (None, Some(_)) => {
            problems.add(
                "kafka.tls.certificate_file",
                "is missing: key_file needs it",
            );
            None
        }
    };
    let files = TlsFiles { ca, identity };
    problems.check("kafka.tls", files.load(Verification::Name))?;
    Some(files)
}

fn check_sasl(
    table: Option<SaslTable>,
    variable: Variable<'_>,
    problems: &mut Problems,
) -> Option<Sasl> {
    let is_asked_for = table.is_some();
    let table = table.unwrap_or_default();
    let variable = |name: &str| variable(&format!("OUTBOX_RELAY_KAFKA_SASL_{name}"));
    let mechanism = variable("MECHANISM").or(table.mechanism);
    let username = variable("USERNAME").or(table.username);
    // A variable of either kind replaces both settings of the file.
    let (mut password, mut file) = (
        variable("PASSWORD"),
        variable("PASSWORD_FILE").map(Into::into),
    );
    if password.is_none() && file.is_none() {
        password = table.password.map(|given| given.expose_secret().to_owned());
        file = table.password_file;
    }
    let is_given =
        mechanism.is_some() || username.is_some() || password.is_some() || file.is_some();
    if !is_asked_for && !is_given {
        return None;
    }
    let mechanism = check_mechanism(mechanism, problems);
    let username = username.filter(|name| !name.is_empty());
    if username.is_none() {
        let reason = "is missing: set it, or OUTBOX_RELAY_KAFKA_SASL_USERNAME";
        problems.add("kafka.sasl.username", reason);
    }
    let password = Secret::check(problems, "OUTBOX_RELAY_KAFKA_SASL_PASSWORD", password, file);
    Some(Sasl {
        mechanism: mechanism?,
        username: username?,
        password: password?,
    })
}

fn check_mechanism(given: Option<String>, problems: &mut Problems) -> Option<Mechanism> {
    let found = given.as_ref().and_then(|given| {
        let mut all = Mechanism::ALL.into_iter();
        all.find(|known| known.name() == given)
    });
    if found.is_none() {
        let given = given.map_or("is missing".into(), |given| format!("{given:?} is unknown"));
        let all = Mechanism::ALL.map(Mechanism::name).join(", ");
        problems.add(
            "kafka.sasl.mechanism",
            format!("{given}: set it to one of {all}"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn what_is_wrong_with_certificates_and_logins_is_told_at_once() {
        let text = check(
            r#"
            [kafka]
            brokers = "localhost:9092"
            [kafka.tls]
            ca_file = "/nowhere/ca.crt"
            key_file = "/nowhere/relay.key"
            [kafka.sasl]
            mechanism = "GSSAPI"
            password = "hunter2"
            password_file = "/nowhere/password"
            [[source]]
            name = "a"
            database_url = "postgres://u:hunter2@host/db?sslmode=verify-ca"
            "#,
            &[],
        )
        .unwrap_err();
        for part in [
            "kafka.tls.certificate_file: is missing",
            "kafka.tls: /nowhere/ca.crt: No such file",
            r#"mechanism: "GSSAPI" is unknown: set it to one of PLAIN, SCRAM-SHA-256"#,
            "kafka.sasl.username: is missing",
            "OUTBOX_RELAY_KAFKA_SASL_PASSWORD: set by both OUTBOX_RELAY_KAFKA_SASL_PASSWORD and OUTBOX_RELAY_KAFKA_SASL_PASSWORD_FILE",
            "a.database_url: sslmode=verify-ca needs a file",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
}
