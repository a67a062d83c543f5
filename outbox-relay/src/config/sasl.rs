//! The table `[kafka.sasl]`: authentication.

use std::{collections::BTreeMap, path::PathBuf};

use cli::Problems;
use kafka_client::{ClientCredentials, Extensions, TokenEndpoint, TokenSource, TokenUrl};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tls::{TlsFiles, Verification};

use super::{PasswordMechanism, Sasl, Secret, SinkKind};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SaslTable {
    mechanism: Option<String>,
    username: Option<String>,
    password: Option<SecretString>,
    password_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    token_endpoint: Option<String>,
    token_endpoint_ca_file: Option<PathBuf>,
    client_id: Option<String>,
    client_secret: Option<SecretString>,
    client_secret_file: Option<PathBuf>,
    scope: Option<String>,
    extensions: Option<BTreeMap<String, String>>,
}

/// The settings of the table, overridden by the variables.
struct Settings {
    mechanism: Option<String>,
    username: Option<String>,
    password: SecretSetting,
    token_file: Option<PathBuf>,
    token_endpoint: Option<String>,
    token_endpoint_ca_file: Option<PathBuf>,
    client_id: Option<String>,
    client_secret: SecretSetting,
    scope: Option<String>,
    extensions: Option<BTreeMap<String, String>>,
}

/// A secret as it was set.
struct SecretSetting {
    name: String,
    value: Option<String>,
    file: Option<PathBuf>,
}

impl SecretSetting {
    fn is_set(&self) -> bool {
        self.value.is_some() || self.file.is_some()
    }

    fn parse(self, problems: &mut Problems) -> Option<Secret> {
        Secret::parse(problems, &self.name, self.value, self.file)
    }
}

/// Returns `None` unless the table, which may be empty, or one of the variables is present.
pub(super) fn parse_sasl(
    table: Option<SaslTable>,
    sink: SinkKind,
    variable: &dyn Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Option<Sasl> {
    let has_table = table.is_some();
    let settings = Settings::load(table.unwrap_or_default(), variable);
    if !has_table && !settings.has_any() {
        return None;
    }
    let mechanism = settings.mechanism.clone();
    if mechanism.as_deref() == Some(Sasl::OAUTHBEARER) {
        if sink == SinkKind::RdKafka {
            problems.add(
                "kafka.sasl.mechanism",
                "OAUTHBEARER requires kafka.sink = \"kafka\"; for rdkafka remove [kafka.sasl] and set sasl.mechanisms \
                 in [kafka.properties]",
            );
        }
        return settings.parse_token_login(problems);
    }
    let mechanism = parse_password_mechanism(mechanism, problems);
    settings.parse_password_login(mechanism, problems)
}

impl Settings {
    fn load(table: SaslTable, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let prefix = "OUTBOX_RELAY_KAFKA_SASL_";
        let variable = |name: &str| variable(&format!("{prefix}{name}"));
        let path = |name: &str| variable(name).map(PathBuf::from);
        // Either variable of a secret overrides both settings in the file.
        let secret = |setting: &str, value: Option<SecretString>, file: Option<PathBuf>| {
            let name = setting.to_uppercase();
            let (given, given_file) = (variable(&name), path(&format!("{name}_FILE")));
            if given.is_some() || given_file.is_some() {
                return SecretSetting {
                    name: format!("{prefix}{name}"),
                    value: given,
                    file: given_file,
                };
            }
            SecretSetting {
                name: format!("kafka.sasl.{setting}"),
                value: value.map(|given| given.expose_secret().to_owned()),
                file,
            }
        };
        Self {
            mechanism: variable("MECHANISM").or(table.mechanism),
            username: variable("USERNAME").or(table.username),
            password: secret("password", table.password, table.password_file),
            token_file: path("TOKEN_FILE").or(table.token_file),
            token_endpoint: variable("TOKEN_ENDPOINT").or(table.token_endpoint),
            token_endpoint_ca_file: path("TOKEN_ENDPOINT_CA_FILE").or(table.token_endpoint_ca_file),
            client_id: variable("CLIENT_ID").or(table.client_id),
            client_secret: secret(
                "client_secret",
                table.client_secret,
                table.client_secret_file,
            ),
            scope: variable("SCOPE")
                .or(table.scope)
                .filter(|scope| !scope.is_empty()),
            extensions: table.extensions,
        }
    }

    fn has_any(&self) -> bool {
        let (login, token) = (self.of_password(), self.of_token());
        self.mechanism.is_some() || login.into_iter().chain(token).any(|(_, is_set)| is_set)
    }

    /// The settings of mechanisms with a password, and whether each is set.
    fn of_password(&self) -> [(&'static str, bool); 2] {
        [
            ("username", self.username.is_some()),
            ("password", self.password.is_set()),
        ]
    }

    /// The settings of OAUTHBEARER, and whether each is set.
    fn of_token(&self) -> impl Iterator<Item = (&'static str, bool)> + use<> {
        let others = [
            ("token_file", self.token_file.is_some()),
            ("extensions", self.extensions.is_some()),
        ];
        others.into_iter().chain(self.of_endpoint())
    }

    /// The settings of a token endpoint, and whether each is set.
    fn of_endpoint(&self) -> [(&'static str, bool); 5] {
        let has_ca_file = self.token_endpoint_ca_file.is_some();
        [
            ("token_endpoint", self.token_endpoint.is_some()),
            ("token_endpoint_ca_file", has_ca_file),
            ("client_id", self.client_id.is_some()),
            ("client_secret", self.client_secret.is_set()),
            ("scope", self.scope.is_some()),
        ]
    }

    fn parse_password_login(
        self,
        mechanism: Option<PasswordMechanism>,
        problems: &mut Problems,
    ) -> Option<Sasl> {
        if let Some(mechanism) = mechanism {
            reject_unused(mechanism.name(), self.of_token(), problems);
        }
        let username = require("username", self.username, problems);
        let password = self.password.parse(problems);
        Some(Sasl::Password {
            mechanism: mechanism?,
            username: username?,
            password: password?,
        })
    }

    fn parse_token_login(self, problems: &mut Problems) -> Option<Sasl> {
        reject_unused(Sasl::OAUTHBEARER, self.of_password(), problems);
        let extensions = Extensions::parse(self.extensions.clone().unwrap_or_default());
        let extensions = problems.check("kafka.sasl.extensions", extensions);
        let tokens = match (self.token_file.clone(), self.token_endpoint.clone()) {
            (Some(file), None) => {
                reject_unused("a token_file", self.of_endpoint(), problems);
                let token = problems.check("kafka.sasl.token_file", cli::read_secret(&file));
                token.map(|_| TokenSource::File(file))
            }
            (None, Some(url)) => self.parse_endpoint(&url, problems),
            (Some(_), Some(_)) => {
                problems.add(
                    "kafka.sasl.token_file",
                    "set together with kafka.sasl.token_endpoint; remove one",
                );
                None
            }
            (None, None) => {
                problems.add(
                    "kafka.sasl.token_file",
                    "missing; OAUTHBEARER requires kafka.sasl.token_file or kafka.sasl.token_endpoint",
                );
                None
            }
        };
        Some(Sasl::OAuthBearer {
            tokens: tokens?,
            extensions: extensions?,
        })
    }

    fn parse_endpoint(self, url: &str, problems: &mut Problems) -> Option<TokenSource> {
        let url = problems.check("kafka.sasl.token_endpoint", TokenUrl::parse(url));
        let client_id = require("client_id", self.client_id, problems);
        let client_secret = self.client_secret.parse(problems);
        if let Some(ca) = &self.token_endpoint_ca_file {
            let files = TlsFiles {
                ca: Some(ca.clone()),
                identity: None,
            };
            problems.check(
                "kafka.sasl.token_endpoint_ca_file",
                files.load(Verification::Name),
            )?;
        }
        let credentials = ClientCredentials {
            client_id: client_id?,
            client_secret: client_secret?,
            scope: self.scope,
            ca: self.token_endpoint_ca_file,
        };
        let endpoint = TokenEndpoint::new(url?, credentials);
        Some(TokenSource::Endpoint(endpoint))
    }
}

fn require(name: &str, given: Option<String>, problems: &mut Problems) -> Option<String> {
    let given = given.filter(|given| !given.is_empty());
    if given.is_none() {
        let variable = name.to_uppercase();
        problems.add(
            format!("kafka.sasl.{name}"),
            format!("missing; set it or OUTBOX_RELAY_KAFKA_SASL_{variable}"),
        );
    }
    given
}

fn reject_unused(
    used: &str,
    settings: impl IntoIterator<Item = (&'static str, bool)>,
    problems: &mut Problems,
) {
    for (name, is_set) in settings {
        if is_set {
            let name = format!("kafka.sasl.{name}");
            problems.add(name, format!("is not used with {used}; remove it"));
        }
    }
}

fn parse_password_mechanism(
    given: Option<String>,
    problems: &mut Problems,
) -> Option<PasswordMechanism> {
    let all = PasswordMechanism::ALL;
    let is_given = |known: &PasswordMechanism| Some(known.name()) == given.as_deref();
    let found = all.into_iter().find(is_given);
    if found.is_none() {
        let given = given.map_or("missing".into(), |given| {
            format!("unknown mechanism {given:?}")
        });
        let all = all.map(PasswordMechanism::name).join(", ");
        let bearer = Sasl::OAUTHBEARER;
        problems.add(
            "kafka.sasl.mechanism",
            format!("{given}; must be one of {all}, {bearer}"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{env::temp_dir, fs};

    use super::super::tests::parse;

    fn parse_table(table: &str, sink: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let text = format!(
            "kafka.brokers = 'localhost:9092'\nkafka.sink = '{sink}'\n\
             [[source]]\nname = 'a'\ndatabase_url = 'postgres://localhost/a'\n\
             [kafka.sasl]\n{table}"
        );
        let config = parse(&text, variables)?;
        Ok(format!("{:?}", config.kafka.security.sasl))
    }

    #[test]
    fn tokens_come_from_a_file_or_an_endpoint() {
        let file = temp_dir().join(format!("outbox-relay-token-{}", std::process::id()));
        fs::write(&file, "header.payload.signature\n").unwrap();
        let table = format!(
            "mechanism = 'OAUTHBEARER'\ntoken_file = {file:?}\nextensions.logicalCluster = 'lkc-1'"
        );
        let sasl = parse_table(&table, "kafka", &[]).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(sasl.contains("File(") && sasl.contains("lkc-1"), "{sasl}");

        let table = "mechanism = 'OAUTHBEARER'\nclient_id = 'relay'\nscope = 'kafka'\n\
                     token_endpoint = 'https://login.example/token'";
        let secret = ("OUTBOX_RELAY_KAFKA_SASL_CLIENT_SECRET", "hunter2");
        let sasl = parse_table(table, "kafka", &[secret]).unwrap();
        assert!(sasl.contains("login.example"), "{sasl}");
        assert!(!sasl.contains("hunter2"), "{sasl}");
    }

    #[test]
    fn all_mistakes_in_settings_of_tokens_are_reported_together() {
        let both = "mechanism = 'OAUTHBEARER'\ntoken_file = '/nowhere'\n\
                    token_endpoint = 'https://login.example/token'\nusername = 'u'\n\
                    extensions.auth = 'x'";
        let text = parse_table(both, "rdkafka", &[]).unwrap_err();
        for part in [
            "kafka.sasl.mechanism: OAUTHBEARER requires kafka.sink = \"kafka\"",
            "kafka.sasl.username: is not used with OAUTHBEARER",
            "kafka.sasl.extensions: invalid name \"auth\"",
            "kafka.sasl.token_file: set together with kafka.sasl.token_endpoint",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let endpoint = "mechanism = 'OAUTHBEARER'\nclient_secret = 'hunter2'\n\
                        client_secret_file = '/nowhere'\ntoken_endpoint = 'ftp://login.example'";
        let text = parse_table(endpoint, "kafka", &[]).unwrap_err();
        for part in [
            "kafka.sasl.client_id: missing; set it or OUTBOX_RELAY_KAFKA_SASL_CLIENT_ID",
            "kafka.sasl.client_secret: set by both kafka.sasl.client_secret and kafka.sasl.client_secret_file",
            "kafka.sasl.token_endpoint: invalid URL",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
        for (table, part) in [
            (
                "mechanism = 'OAUTHBEARER'",
                "kafka.sasl.token_file: missing",
            ),
            (
                "mechanism = 'OAUTHBEARER'\ntoken_file = '/nowhere'\nscope = 's'",
                "kafka.sasl.scope: is not used with a token_file",
            ),
            (
                "mechanism = 'OAUTHBEARER'\ntoken_file = '/nowhere'",
                "kafka.sasl.token_file: failed to read /nowhere",
            ),
            (
                "mechanism = 'PLAIN'\nusername = 'u'\npassword = 'p'\nscope = 's'",
                "kafka.sasl.scope: is not used with PLAIN",
            ),
            (
                "mechanism = 'GSSAPI'",
                "must be one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER",
            ),
        ] {
            let text = parse_table(table, "kafka", &[]).unwrap_err();
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
