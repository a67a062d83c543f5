//! The table `[kafka.tls]`: encryption.

use std::path::PathBuf;

use cli::Problems;
use serde::Deserialize;
use tls::{Identity, TlsFiles, Verification};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    ca_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

/// Returns `None` unless the table, which may be empty, or one of the variables is present.
pub(super) fn parse_tls(
    table: Option<TlsTable>,
    variable: &dyn Fn(&str) -> Option<String>,
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
            "kafka.sasl.password: set by both kafka.sasl.password and kafka.sasl.password_file",
            "a.database_url: sslmode=verify-ca requires a CA file",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
}
