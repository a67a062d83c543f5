//! The configuration: one TOML file with any number of sources. These environment variables override it:
//!
//! - `OUTBOX_RELAY_ADMIN_ADDR`: `admin_addr`
//! - `OUTBOX_RELAY_KAFKA_BROKERS`: `kafka.brokers`
//! - `OUTBOX_RELAY_KAFKA_TLS_<SETTING>`: `ca_file`, `certificate_file`, `key_file` of `kafka.tls`
//! - `OUTBOX_RELAY_KAFKA_SASL_<SETTING>`: each setting of `kafka.sasl` except `extensions`
//! - `OUTBOX_RELAY_<SOURCE>_DATABASE_URL`: `database_url` of the source with that name, in upper case,
//!   with `_` in place of every character that is neither a letter nor a digit
//! - `OUTBOX_RELAY_<SOURCE>_DATABASE_URL_FILE`: `database_url_file` of that source

mod kafka;
mod mapping;
mod names;
mod properties;
#[cfg(test)]
mod reference;
mod sasl;
mod source;
mod tls;
mod toml_error;

use std::{collections::HashSet, env, net::SocketAddr, path::Path, time::Duration};

use cli::{ConfigError, Problems, read_text};
use serde::Deserialize;

pub use cli::Secret;
pub use postgres_session::DatabaseUrl;

pub(crate) use self::names::{OWN_HEADERS, PARTITION_HEADER, TIMESTAMP_HEADER};
use self::{
    kafka::KafkaTable,
    source::{SourceTable, variable_part},
    toml_error::describe_toml_error,
};
pub use self::{mapping::Mapping, properties::KafkaProperties};
pub use kafka_client::{
    ClientCredentials, Extensions, PasswordMechanism, Sasl, Security as KafkaSecurity,
    TokenEndpoint, TokenSource, TokenUrl,
};

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address that serves `/livez`, `/readyz`, `/status` and `/metrics`.
    pub admin_addr: SocketAddr,
    /// The Kafka cluster that receives the records.
    pub kafka: KafkaConfig,
    /// The outboxes to publish.
    pub sources: Vec<SourceConfig>,
}

/// The Kafka cluster, and the limits on what is in flight to it.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// The bootstrap brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The producer implementation.
    pub sink: SinkKind,
    /// The time that a broker may be silent while records are in flight, in addition to its throttle times. After it the source
    /// restarts from its checkpoint, which may publish records again.
    pub delivery_timeout: Duration,
    /// The limit on unacknowledged records per source. A higher limit raises throughput; up to this many
    /// records are sent twice after a crash.
    pub max_in_flight_records: usize,
    /// The limit on unacknowledged bytes per source, for the sink `rdkafka` only.
    pub max_in_flight_bytes: usize,
    /// The size limit of a record. The relay rejects larger records without sending them. Topics should have a
    /// `max.message.bytes` of at least this.
    pub max_record_bytes: usize,
    /// The compression of batches.
    pub compression: Compression,
    /// Encryption and authentication.
    pub security: KafkaSecurity,
    /// Additional librdkafka properties, for the sink `rdkafka`.
    pub properties: KafkaProperties,
}

/// The producer implementation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkKind {
    /// The relay's own producer: fast, small, and fenced by the brokers.
    #[default]
    Kafka,
    /// librdkafka.
    RdKafka,
}

/// The codec of record batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Costs the relay the least CPU.
    #[default]
    None,
    /// Understood by every client.
    Gzip,
    /// The least CPU of the codecs.
    Lz4,
    /// The smallest batches.
    Zstd,
}

impl Compression {
    /// Returns the value of the configuration, which is also librdkafka's `compression.type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// The policy for a record that Kafka rejects permanently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRejection {
    /// Stops the source before the record and retries until Kafka accepts it.
    #[default]
    Halt,
    /// Copies the record and all later events of its key to `relay_parked`. Other keys continue.
    ParkKey,
    /// Copies the record to `relay_dead_letters` and the dead letter topic. Later events of its key continue.
    DeadLetter,
}

impl OnRejection {
    /// Returns the name in the configuration file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::ParkKey => "park_key",
            Self::DeadLetter => "dead_letter",
        }
    }
}

/// One outbox: a database and a table.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The name in logs, in the checkpoint and in the lock. Of several relays with the same source name
    /// and database one publishes, and the others are standbys.
    pub name: String,
    /// The database that holds the outbox.
    pub database_url: DatabaseUrl,
    /// The outbox table and its columns.
    pub mapping: Mapping,
    /// The CloudEvents attribute `source`.
    pub ce_source: String,
    /// The content type of the payloads.
    pub content_type: String,
    /// The longest interval between two polls of an idle outbox. It bounds the latency of the first event
    /// after an idle period; a shorter interval costs the database more empty polls.
    pub max_poll_interval: Duration,
    /// The policy for a record that Kafka rejects permanently.
    pub on_rejection: OnRejection,
    /// The topic that receives a copy of each dead letter.
    pub dead_letter_topic: Option<String>,
    /// The consecutive rejections of events of a topic that may become dead letters. After them the source halts.
    pub max_consecutive_rejections: u32,
    /// The minimum age of the newest row of a partition before the partition is truncated. All rows must
    /// have been published as well.
    pub retention: Duration,
    /// The interval between two attempts to truncate partitions. Not a setting: tests use a shorter one.
    pub truncation_interval: Duration,
    /// The limit on rows per page. Larger pages cost less per row and more memory.
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

const MAX_FILE_BYTES: u64 = 1024 * 1024;
const DEFAULT_ADMIN_ADDR: &str = "127.0.0.1:9600";

impl Config {
    /// Reads the file and the environment variables.
    ///
    /// # Errors
    /// Lists every invalid setting.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        match Self::read_file(path, &mut problems) {
            Some(file) => Self::parse(file, &|name| env::var(name).ok(), problems),
            None => Err(problems.into_error()),
        }
    }

    /// Reads the admin address alone: commands that query a running relay need no secrets.
    ///
    /// # Errors
    /// If the file can't be read or the address is invalid.
    pub fn load_admin_addr(path: &Path) -> Result<SocketAddr, ConfigError> {
        let mut problems = Problems::default();
        let given = match env::var("OUTBOX_RELAY_ADMIN_ADDR") {
            Ok(text) => Some(text),
            Err(_) => Self::read_file(path, &mut problems).and_then(|file| file.admin_addr),
        };
        let admin_addr = parse_admin_addr(given, &mut problems);
        admin_addr
            .filter(|_| problems.is_empty())
            .ok_or_else(|| problems.into_error())
    }

    fn read_file(path: &Path, problems: &mut Problems) -> Option<File> {
        let name = path.display().to_string();
        let text = problems.check(
            &name,
            read_text(path, MAX_FILE_BYTES).map_err(|err| {
                format!("{err}; set --config or OUTBOX_RELAY_CONFIG to the configuration file")
            }),
        )?;
        problems.check(
            &name,
            toml::from_str(&text).map_err(|err| describe_toml_error(&text, &err)),
        )
    }

    fn parse(
        file: File,
        variable: &dyn Fn(&str) -> Option<String>,
        mut problems: Problems,
    ) -> Result<Self, ConfigError> {
        let given = variable("OUTBOX_RELAY_ADMIN_ADDR").or(file.admin_addr);
        let admin_addr = parse_admin_addr(given, &mut problems);
        let kafka = file.kafka.parse(variable, &mut problems);
        if file.source.is_empty() {
            problems.add(
                "source",
                "missing; add a table [[source]] with name and database_url",
            );
        }
        let mut names = HashSet::new();
        let mut sources = Vec::new();
        for source in file.source {
            if !names.insert(variable_part(&source.name)) {
                problems.add(
                    &source.name,
                    "duplicate source name; give each source a unique name",
                );
            }
            sources.extend(source.parse(variable, &mut problems));
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

    /// Returns the source with this name.
    ///
    /// # Errors
    /// If there is no such source. Lists the configured names.
    pub fn source(&self, name: &str) -> Result<&SourceConfig, ConfigError> {
        self.sources
            .iter()
            .find(|source| source.name == name)
            .ok_or_else(|| {
                let known: Vec<&str> = self.sources.iter().map(|s| s.name.as_str()).collect();
                let mut problems = Problems::default();
                problems.add(
                    "source",
                    format!(
                        "{name:?} not found; configured sources: {}",
                        known.join(", ")
                    ),
                );
                problems.into_error()
            })
    }
}

fn parse_admin_addr(given: Option<String>, problems: &mut Problems) -> Option<SocketAddr> {
    let text = given.unwrap_or_else(|| DEFAULT_ADMIN_ADDR.to_owned());
    let parsed = text.parse().map_err(|_| {
        format!("invalid address {text:?}; must be ip:port, such as {DEFAULT_ADMIN_ADDR}")
    });
    problems.check("admin_addr", parsed)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    pub(super) fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let file = toml::from_str(text).map_err(|err| err.to_string())?;
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Config::parse(file, &variable, Problems::default()).map_err(|err| err.to_string())
    }

    #[test]
    fn a_minimal_file_is_valid() {
        let config = parse(
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
        assert_eq!(config.kafka.delivery_timeout, Duration::from_secs(30));
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn variables_override_the_file() {
        let config = parse(
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
        let Some(Sasl::Password {
            mechanism,
            username,
            password,
        }) = &config.kafka.security.sasl
        else {
            panic!("{:?}", config.kafka.security);
        };
        assert_eq!(*mechanism, PasswordMechanism::ScramSha512);
        assert_eq!(username, "relay");
        assert_eq!(password.read().unwrap().expose_secret(), "hunter2");
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(config.sources[0].database_url.dbname().unwrap(), "db");
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let text = parse(
            r#"
            admin_addr = "nowhere"
            kafka.delivery_timeout_ms = 1
            kafka.max_in_flight_bytes = 1048576
            kafka.max_record_bytes = 2000000
            [[source]]
            name = "a"
            max_page_rows = 0
            topic = "${"
            [[source]]
            name = "A"
            database_url = "http://user:hunter2@host/"
            "#,
            &[],
        )
        .unwrap_err();
        for part in [
            "admin_addr",
            "max_page_rows",
            "missing }",
            "kafka.brokers",
            "delivery_timeout_ms",
            "max_record_bytes",
            "OUTBOX_RELAY_A_DATABASE_URL",
            "duplicate source name",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn invalid_broker_addresses_and_topic_names_are_reported() {
        let text = parse(
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
            r#"kafka.brokers: invalid address "kafka""#,
            r#"a.dead_letter_topic: invalid topic name "dead letters""#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_secret_that_is_set_twice_is_named_as_it_was_set() {
        let file = r#"
            kafka.brokers = "localhost:9092"
            [[source]]
            name = "a"
            database_url = "postgres://localhost/a"
            database_url_file = "/run/secrets/a"
            "#;
        let err = parse(file, &[]).unwrap_err();
        let settings = "set by both a.database_url and a.database_url_file";
        assert!(err.contains(settings), "{err}");
        let variables = [
            ("OUTBOX_RELAY_A_DATABASE_URL", "postgres://localhost/a"),
            ("OUTBOX_RELAY_A_DATABASE_URL_FILE", "/run/secrets/a"),
        ];
        let err = parse(file, &variables).unwrap_err();
        let variables =
            "set by both OUTBOX_RELAY_A_DATABASE_URL and OUTBOX_RELAY_A_DATABASE_URL_FILE";
        assert!(err.contains(variables), "{err}");
    }

    #[test]
    fn an_unknown_setting_is_rejected() {
        let err = parse("kafka.broker = 'x'", &[]).unwrap_err();
        assert!(err.contains("unknown field `broker`"), "{err}");
    }
}
