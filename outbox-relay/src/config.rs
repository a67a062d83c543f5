//! One TOML file with any number of sources. These variables take precedence over it:
//!
//! - `OUTBOX_RELAY_ADMIN_ADDR`: `admin_addr`
//! - `OUTBOX_RELAY_KAFKA_BROKERS`: `kafka.brokers`
//! - `OUTBOX_RELAY_KAFKA_TLS_<SETTING>`: `ca_file`, `certificate_file`, `key_file` of `kafka.tls`
//! - `OUTBOX_RELAY_KAFKA_SASL_<SETTING>`: `mechanism`, `username`, `password` or `password_file` of
//!   `kafka.sasl`
//! - `OUTBOX_RELAY_<SOURCE>_DATABASE_URL`: `database_url` of the source with that name, in capital
//!   letters and with `_` for everything that is neither letter nor digit
//! - `OUTBOX_RELAY_<SOURCE>_DATABASE_URL_FILE`: `database_url_file` of that source

mod database_url;
mod kafka;
mod mapping;
mod names;
mod properties;
#[cfg(test)]
mod reference;
mod secret;
mod security;
mod source;

use std::{collections::HashSet, env, net::SocketAddr, path::Path, time::Duration};

use cli::{ConfigError, Problems, read_text};
use serde::Deserialize;

pub(crate) use self::names::OWN_HEADERS;
pub use self::{
    database_url::DatabaseUrl,
    mapping::Mapping,
    properties::KafkaProperties,
    secret::Secret,
    security::{KafkaSecurity, Mechanism, Sasl},
};
use self::{
    kafka::KafkaTable,
    secret::place,
    source::{SourceTable, variable_part},
};

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where `/livez`, `/readyz` and `/status` are served.
    pub admin_addr: SocketAddr,
    /// Where records go.
    pub kafka: KafkaConfig,
    /// Where they come from.
    pub sources: Vec<SourceConfig>,
}

/// Where records go, and how much may be on its way.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// The brokers to begin with, `host:port`, separated by commas.
    pub brokers: String,
    /// How records are sent.
    pub sink: SinkKind,
    /// A record that is not acknowledged after so long counts as lost, and publishing begins anew
    /// from the checkpoint. Longer lengthens a failover by as much; shorter makes a busy broker
    /// look like a dead one.
    pub delivery_timeout: Duration,
    /// Records in flight, a source. More keeps a fast broker busy; after a kill, so many may be
    /// sent twice.
    pub max_in_flight_records: usize,
    /// Bytes in flight, a source.
    pub max_in_flight_bytes: usize,
    /// The largest record that is tried; the topic's `max.message.bytes` should be no less.
    pub max_record_bytes: usize,
    /// How the brokers are reached, and who asks them.
    pub security: KafkaSecurity,
    /// Further properties of librdkafka, for the sink over it.
    pub properties: KafkaProperties,
}

/// How records are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkKind {
    /// By record batches of our own: fast, small, and fenced at the broker.
    #[default]
    Kafka,
    /// By librdkafka: the conservative choice.
    RdKafka,
}

/// What to do with a record that Kafka rejects for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRejection {
    /// Stop the source in front of it, and try again for as long as it takes.
    #[default]
    Halt,
    /// Let it wait in a table, and every later event of its key behind it; other keys go on.
    ParkKey,
    /// Put it aside, in a table and a topic; later events of its key go on.
    DeadLetter,
}

impl OnRejection {
    /// As it is configured.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::ParkKey => "park_key",
            Self::DeadLetter => "dead_letter",
        }
    }
}

/// One outbox.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Names the source in logs, in its checkpoint and in its lock. Two relays with the same name
    /// and database share the work: one publishes, the other stands by.
    pub name: String,
    /// The database with the outbox.
    pub database_url: DatabaseUrl,
    /// Where in it the outbox is.
    pub mapping: Mapping,
    /// The CloudEvents attribute `source` of its events.
    pub ce_source: String,
    /// The content type of its payloads.
    pub content_type: String,
    /// The longest pause between two looks at an idle outbox. It bounds the latency of the first
    /// event after a quiet time; shorter costs the database more empty looks.
    pub max_poll_interval: Duration,
    /// What to do with a record that Kafka rejects for good.
    pub on_rejection: OnRejection,
    /// The topic for dead letters, beside their table.
    pub dead_letter_topic: Option<String>,
    /// How long rows stay after they were written, at least; their partitions are emptied then, if all
    /// of them were published.
    pub retention: Duration,
    /// How often it is looked whether a partition can be emptied.
    pub rotation_interval: Duration,
    /// Rows of a page at most. Larger pages cost less per row and more memory.
    pub max_page_rows: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    admin_addr: Option<String>,
    #[serde(default)]
    kafka: KafkaTable,
    #[serde(default)]
    source: Vec<SourceTable>,
}

/// Of the configuration.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
const DEFAULT_ADMIN_ADDR: &str = "127.0.0.1:9600";

impl Config {
    /// Reads the file and the variables.
    ///
    /// # Errors
    /// With every mistake that is found.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        match Self::read(path, &mut problems) {
            Some(file) => Self::check(file, &|name| env::var(name).ok(), problems),
            None => Err(problems.into_error()),
        }
    }

    /// Where the relay with this configuration answers questions. The rest is not looked at, so that
    /// whoever asks needs no secrets.
    ///
    /// # Errors
    /// If the file can't be read, or the address is none.
    pub fn load_admin_addr(path: &Path) -> Result<SocketAddr, ConfigError> {
        let mut problems = Problems::default();
        let given = match env::var("OUTBOX_RELAY_ADMIN_ADDR") {
            Ok(text) => Some(text),
            Err(_) => Self::read(path, &mut problems).and_then(|file| file.admin_addr),
        };
        let admin_addr = admin_addr(given, &mut problems);
        admin_addr
            .filter(|_| problems.is_empty())
            .ok_or_else(|| problems.into_error())
    }

    fn read(path: &Path, problems: &mut Problems) -> Option<File> {
        let name = path.display().to_string();
        let text = problems.check(
            &name,
            read_text(path, MAX_FILE_BYTES).map_err(|err| {
                format!("{err}; name the configuration with --config or OUTBOX_RELAY_CONFIG")
            }),
        )?;
        problems.check(
            &name,
            toml::from_str(&text).map_err(|err| place(&text, &err)),
        )
    }

    fn check(
        file: File,
        variable: &dyn Fn(&str) -> Option<String>,
        mut problems: Problems,
    ) -> Result<Self, ConfigError> {
        let given = variable("OUTBOX_RELAY_ADMIN_ADDR").or(file.admin_addr);
        let admin_addr = admin_addr(given, &mut problems);
        let kafka = file.kafka.check(variable, &mut problems);
        if file.source.is_empty() {
            problems.add(
                "source",
                "there is none; add a table [[source]] with name and database_url",
            );
        }
        let mut names = HashSet::new();
        let mut sources = Vec::new();
        for source in file.source {
            if !names.insert(variable_part(&source.name)) {
                problems.add(
                    &source.name,
                    "two sources have this name; give each one of its own",
                );
            }
            sources.extend(source.check(variable, &mut problems));
        }
        match (admin_addr, kafka) {
            (Some(admin_addr), Some(kafka)) if problems.is_empty() => Ok(Self {
                admin_addr,
                kafka,
                sources,
            }),
            _ => Err(problems.into_error()),
        }
    }

    /// The source of this name.
    ///
    /// # Errors
    /// If there is none, with the names that there are.
    pub fn source(&self, name: &str) -> Result<&SourceConfig, ConfigError> {
        self.sources
            .iter()
            .find(|source| source.name == name)
            .ok_or_else(|| {
                let known: Vec<&str> = self.sources.iter().map(|s| s.name.as_str()).collect();
                let mut problems = Problems::default();
                problems.add(
                    "source",
                    format!("there is no {name:?}, only {}", known.join(", ")),
                );
                problems.into_error()
            })
    }
}

fn admin_addr(given: Option<String>, problems: &mut Problems) -> Option<SocketAddr> {
    let text = given.unwrap_or_else(|| DEFAULT_ADMIN_ADDR.to_owned());
    let parsed = text
        .parse()
        .map_err(|_| format!("{text:?} isn't like {DEFAULT_ADMIN_ADDR}"));
    problems.check("admin_addr", parsed)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    pub(super) fn check(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let file = toml::from_str(text).map_err(|err| err.to_string())?;
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Config::check(file, &variable, Problems::default()).map_err(|err| err.to_string())
    }

    #[test]
    fn a_short_file_is_enough() {
        let config = check(
            r#"
            kafka.brokers = "localhost:9092"
            [[source]]
            name = "orders"
            database_url = "postgres://relay:secret@localhost/orders"
            "#,
            &[],
        )
        .unwrap();
        assert_eq!(config.sources[0].ce_source, "/orders");
        assert_eq!(config.kafka.delivery_timeout, Duration::from_secs(2));
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn variables_take_precedence() {
        let config = check(
            r#"
            kafka.sasl = { mechanism = "PLAIN", username = "relay", password = "wrong" }
            [[source]]
            name = "my-orders"
            database_url = "postgres://wrong"
            "#,
            &[
                ("OUTBOX_RELAY_KAFKA_BROKERS", "kafka:9092"),
                ("OUTBOX_RELAY_KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
                ("OUTBOX_RELAY_KAFKA_SASL_PASSWORD", "hunter2"),
                ("OUTBOX_RELAY_MY_ORDERS_DATABASE_URL", "postgres://right/db"),
            ],
        )
        .unwrap();
        assert_eq!(config.kafka.brokers, "kafka:9092");
        let sasl = config.kafka.security.sasl.as_ref().unwrap();
        assert_eq!(sasl.mechanism, Mechanism::ScramSha512);
        assert_eq!(sasl.username, "relay");
        assert_eq!(sasl.password.read().unwrap().expose_secret(), "hunter2");
        assert!(!format!("{config:?}").contains("hunter2"));
        let target = config.sources[0].database_url.read().unwrap();
        assert_eq!(target.config.get_dbname(), Some("db"));
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let text = check(
            r#"
            admin_addr = "nowhere"
            kafka.delivery_timeout_ms = 1
            kafka.max_in_flight_bytes = 1048576
            kafka.max_record_bytes = 2000000
            [[source]]
            name = "a"
            [[source]]
            name = "A"
            database_url = "http://user:hunter2@host/"
            "#,
            &[],
        )
        .unwrap_err();
        for part in [
            "admin_addr",
            "kafka.brokers",
            "delivery_timeout_ms",
            "max_record_bytes",
            "OUTBOX_RELAY_A_DATABASE_URL",
            "two sources",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn what_kafka_could_not_be_asked_for_is_told_with_the_way_out() {
        let text = check(
            r#"
            kafka.brokers = "localhost:9092, kafka"
            [[source]]
            name = "a"
            database_url = "postgres://localhost/a"
            dead_letter_topic = "dead letters"
            "#,
            &[],
        )
        .unwrap_err();
        for part in [
            r#""kafka" isn't like localhost:9092"#,
            r#"a.dead_letter_topic: no topic can be named "dead letters""#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_misspelt_setting_is_rejected() {
        let err = check("kafka.broker = 'x'", &[]).unwrap_err();
        assert!(err.contains("unknown field `broker`"), "{err}");
    }
}
