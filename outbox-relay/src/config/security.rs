//! The tables `[kafka.tls]` and `[kafka.sasl]`: encryption and authentication.

use std::path::PathBuf;

use cli::Problems;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::{KafkaSecurity, Mechanism, Sasl, Secret};
use tls::{Identity, TlsFiles, Verification};

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

pub(super) fn parse_security(
    tls: Option<TlsTable>,
    sasl: Option<SaslTable>,
    variable: Variable<'_>,
    problems: &mut Problems,
) -> KafkaSecurity {
    KafkaSecurity {
        tls: parse_tls(tls, variable, problems),
        sasl: parse_sasl(sasl, variable, problems),
    }
}

/// Returns `None` unless the table, which may be empty, or one of the variables is present.
fn parse_tls(
    table: Option<TlsTable>,
    variable: Variable<'_>,
    problems: &mut Problems,
) -> Option<TlsFiles> {
    let has_table = table.is_some();
    let table = table.unwrap_or_default();
    let file = |name: &str, given: Option<PathBuf>| {
        let variable = variable(&format!("OUTBOX_RELAY_KAFKA_TLS_{name}"));
        variable.map(PathBuf::from).or(given)
    };
    let ca = file("CA_FILE", table.ca_file);
    let certificate = file("CERTIFICATE_FILE", table.certificate_file);
    let key = file("KEY_FILE", table.key_file);
    if !has_table && ca.is_none() && certificate.is_none() && key.is_none() {
        return None;
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            problems.add(
                "kafka.tls.key_file",
                "missing; kafka.tls.certificate_file requires it",
            );
            None
        }
        (None, Some(_)) => {
            problems.add(
                "kafka.tls.certificate_file",
                "missing; kafka.tls.key_file requires it",
            );
            None
        }
    };
    let files = TlsFiles { ca, identity };
    problems.check("kafka.tls", files.load(Verification::Name))?;
    Some(files)
}

fn parse_sasl(
    table: Option<SaslTable>,
    variable: Variable<'_>,
    problems: &mut Problems,
) -> Option<Sasl> {
    let has_table = table.is_some();
    let table = table.unwrap_or_default();
    let variable = |name: &str| variable(&format!("OUTBOX_RELAY_KAFKA_SASL_{name}"));
    let mechanism = variable("MECHANISM").or(table.mechanism);
    let username = variable("USERNAME").or(table.username);
    // Either variable overrides both settings in the file.
    let (mut password, mut file) = (
        variable("PASSWORD"),
        variable("PASSWORD_FILE").map(Into::into),
    );
    if password.is_none() && file.is_none() {
        password = table.password.map(|given| given.expose_secret().to_owned());
        file = table.password_file;
    }
    let has_setting =
        mechanism.is_some() || username.is_some() || password.is_some() || file.is_some();
    if !has_table && !has_setting {
        return None;
    }
    let mechanism = parse_mechanism(mechanism, problems);
    let username = username.filter(|name| !name.is_empty());
    if username.is_none() {
        let reason = "missing; set it or OUTBOX_RELAY_KAFKA_SASL_USERNAME";
        problems.add("kafka.sasl.username", reason);
    }
    let password = Secret::parse(problems, "OUTBOX_RELAY_KAFKA_SASL_PASSWORD", password, file);
    Some(Sasl {
        mechanism: mechanism?,
        username: username?,
        password: password?,
    })
}

fn parse_mechanism(given: Option<String>, problems: &mut Problems) -> Option<Mechanism> {
    let found = given.as_ref().and_then(|given| {
        let mut all = Mechanism::ALL.into_iter();
        all.find(|known| known.name() == given)
    });
    if found.is_none() {
        let given = given.map_or("missing".into(), |given| {
            format!("unknown mechanism {given:?}")
        });
        let all = Mechanism::ALL.map(Mechanism::name).join(", ");
        problems.add(
            "kafka.sasl.mechanism",
            format!("{given}; must be one of {all}"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;

    #[test]
    fn all_mistakes_in_tls_and_sasl_settings_are_reported_together() {
        let text = parse(
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
            "kafka.tls.certificate_file: missing",
            "kafka.tls: /nowhere/ca.crt: No such file",
            r#"mechanism: unknown mechanism "GSSAPI"; must be one of PLAIN, SCRAM-SHA-256"#,
            "kafka.sasl.username: missing",
            "OUTBOX_RELAY_KAFKA_SASL_PASSWORD: set by both OUTBOX_RELAY_KAFKA_SASL_PASSWORD and OUTBOX_RELAY_KAFKA_SASL_PASSWORD_FILE",
            "a.database_url: sslmode=verify-ca requires a CA file",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
}
