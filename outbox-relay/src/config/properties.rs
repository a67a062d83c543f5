//! The table `[kafka.properties]`, which the sink `rdkafka` passes to librdkafka.

use std::{collections::BTreeMap, time::Duration};

use cli::Problems;
use rdkafka::{ClientConfig, error::KafkaError, producer::BaseProducer};
use secrecy::{ExposeSecret as _, SecretString};
use toml::{Table, Value};

use super::{PasswordMechanism, Sasl, SinkKind};

/// Properties that another setting controls, and that setting.
const SET_ELSEWHERE: [(&str, &str); 13] = [
    ("bootstrap.servers", "kafka.brokers"),
    ("metadata.broker.list", "kafka.brokers"),
    ("security.protocol", "the tables kafka.tls and kafka.sasl"),
    ("ssl.ca.location", "kafka.tls.ca_file"),
    ("ssl.certificate.location", "kafka.tls.certificate_file"),
    ("ssl.key.location", "kafka.tls.key_file"),
    ("sasl.username", "kafka.sasl.username"),
    ("sasl.password", "kafka.sasl.password_file"),
    ("message.timeout.ms", "kafka.delivery_timeout_ms"),
    ("delivery.timeout.ms", "kafka.delivery_timeout_ms"),
    ("message.max.bytes", "kafka.max_record_bytes"),
    ("queue.buffering.max.kbytes", "kafka.max_in_flight_bytes"),
    (
        "queue.buffering.max.messages",
        "kafka.max_in_flight_records",
    ),
];

/// Properties that the delivery guarantees depend on.
const FIXED: [&str; 12] = [
    "acks",
    "batch.size",
    "delivery.report.only.error",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enabled_events",
    "partitioner",
    "request.required.acks",
    "test.mock.broker.rtt",
    "test.mock.num.brokers",
    "topic.blacklist",
    "transactional.id",
];

/// The two names of the property that selects the SASL mechanism.
const MECHANISM: [&str; 2] = ["sasl.mechanism", "sasl.mechanisms"];

/// Validated librdkafka properties. None of them is controlled by the relay.
#[derive(Clone, Debug, Default)]
pub struct KafkaProperties(
    // Some are secrets, and new versions of librdkafka add more.
    BTreeMap<String, SecretString>,
);

impl KafkaProperties {
    /// Returns true if they select a SASL mechanism.
    pub(crate) fn has_login(&self) -> bool {
        MECHANISM.iter().any(|name| self.0.contains_key(*name))
    }

    pub(crate) fn apply(&self, config: &mut ClientConfig) {
        for (name, value) in &self.0 {
            config.set(name, value.expose_secret());
        }
    }

    pub(super) fn parse(
        table: Table,
        sink: SinkKind,
        sasl: Option<&Sasl>,
        delivery_timeout: Duration,
        problems: &mut Problems,
    ) -> Self {
        if sink != SinkKind::RdKafka && !table.is_empty() {
            problems.add(
                "kafka.properties",
                "requires kafka.sink = \"rdkafka\"; set it or remove this table",
            );
            return Self::default();
        }
        let mut given = BTreeMap::new();
        flatten("", table, &mut given, problems);
        let mut properties = Self::default();
        for (name, value) in given {
            let checked = validate_property(&name, value.expose_secret(), sasl, delivery_timeout);
            if problems
                .check(&format!("kafka.properties.{name}"), checked)
                .is_some()
            {
                properties.0.insert(name, value);
            }
        }
        properties
    }
}

/// Joins nested keys: TOML parses an unquoted key with dots as nested tables.
fn flatten(
    prefix: &str,
    table: Table,
    flat: &mut BTreeMap<String, SecretString>,
    problems: &mut Problems,
) {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        let text = match value {
            Value::Table(table) => {
                flatten(&format!("{name}."), table, flat, problems);
                continue;
            }
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(flag) => flag.to_string(),
            Value::Datetime(_) | Value::Array(_) => {
                let name = format!("kafka.properties.{name}");
                problems.add(
                    name,
                    "invalid type; must be a string, a number or a boolean",
                );
                continue;
            }
        };
        if flat.insert(name.clone(), text.into()).is_some() {
            problems.add(format!("kafka.properties.{name}"), "is set twice");
        }
    }
}

/// Rejects properties that the relay controls and those that librdkafka does not accept.
fn validate_property(
    name: &str,
    value: &str,
    sasl: Option<&Sasl>,
    delivery_timeout: Duration,
) -> Result<(), String> {
    if let Some((_, setting)) = SET_ELSEWHERE.iter().find(|(known, _)| *known == name) {
        return Err(format!("is controlled by {setting}"));
    }
    if FIXED.contains(&name) {
        return Err("can't be changed because the delivery guarantees depend on it".into());
    }
    if MECHANISM.contains(&name) {
        let is_ours = |mechanism: &PasswordMechanism| mechanism.name().eq_ignore_ascii_case(value);
        if sasl.is_some() || PasswordMechanism::ALL.iter().any(is_ours) {
            return Err("is controlled by kafka.sasl.mechanism".into());
        }
    }
    // Sets those properties of the sink that librdkafka compares with others. No broker is contacted.
    let mut config = ClientConfig::new();
    config
        .set("enable.idempotence", "true")
        .set(
            "message.timeout.ms",
            delivery_timeout.as_millis().to_string(),
        )
        .set("log_level", "0")
        .set(name, value);
    match config.create::<BaseProducer>() {
        Ok(_) => Ok(()),
        // The text can contain the value, which may be a secret.
        Err(KafkaError::ClientConfig(_, text, _, _) | KafkaError::ClientCreation(text))
            if !text.contains(value) =>
        {
            Err(text)
        }
        Err(_) => Err("librdkafka does not accept this value".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;

    fn config(properties: &str) -> String {
        format!(
            "kafka.brokers = 'localhost:9092'\nkafka.sink = 'rdkafka'\n\
             {properties}\n\
             [[source]]\nname = 'a'\ndatabase_url = 'postgres://localhost/a'"
        )
    }

    #[test]
    fn properties_are_passed_with_their_dotted_names() {
        let text = config(
            "[kafka.properties]
             compression.type = 'zstd'
             'sasl.mechanisms' = 'OAUTHBEARER'
             sasl.oauthbearer.config = 'principal=hunter2'
             enable.sasl.oauthbearer.unsecure.jwt = true
             socket.timeout.ms = 5000",
        );
        let config = parse(&text, &[]).unwrap();
        let properties = &config.kafka.properties;
        assert!(properties.has_login());
        let mut librdkafka = rdkafka::ClientConfig::new();
        properties.apply(&mut librdkafka);
        assert_eq!(librdkafka.get("compression.type"), Some("zstd"));
        assert_eq!(librdkafka.get("socket.timeout.ms"), Some("5000"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn all_invalid_properties_are_reported_by_name() {
        let text = config(
            "[kafka.sasl]
             mechanism = 'PLAIN'
             username = 'relay'
             password = 'hunter2'
             [kafka.properties]
             bootstrap.servers = 'elsewhere:9092'
             acks = 1
             message.timeout.ms = 5
             'sasl.mechanism' = 'GSSAPI'
             sasl.password = 'hunter2'
             compresion.type = 'zstd'
             socket.timeout.ms = 'hunter2'
             compression.type = 'hunter2'
             client.id = ['a']
             linger = { ms = 1 }
             'linger.ms' = 2
             max.in.flight = 100
             retries = 0
             queuing.strategy = 'lifo'
             queue.buffering.max.ms = 60000
             delivery.report.only.error = true
             test.mock.num.brokers = 1",
        );
        let text = parse(&text, &[]).unwrap_err();
        for part in [
            "kafka.properties.bootstrap.servers: is controlled by kafka.brokers",
            "kafka.properties.acks: can't be changed",
            "kafka.properties.message.timeout.ms: is controlled by kafka.delivery_timeout_ms",
            "kafka.properties.sasl.mechanism: is controlled by kafka.sasl.mechanism",
            "kafka.properties.sasl.password: is controlled by kafka.sasl.password_file",
            "kafka.properties.compresion.type: No such configuration property",
            "kafka.properties.socket.timeout.ms: Invalid value for",
            "kafka.properties.compression.type: librdkafka does not accept this value",
            "kafka.properties.client.id: invalid type; must be",
            "kafka.properties.linger.ms: is set twice",
            "kafka.properties.max.in.flight: `max.in.flight` must be set",
            "kafka.properties.retries: ",
            "kafka.properties.queuing.strategy: ",
            "kafka.properties.queue.buffering.max.ms: ",
            "kafka.properties.delivery.report.only.error: can't be changed",
            "kafka.properties.test.mock.num.brokers: can't be changed",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn properties_require_the_sink_rdkafka() {
        let text = config("[kafka.properties]\ncompression.type = 'zstd'");
        let text = parse(&text.replace("rdkafka", "kafka"), &[]).unwrap_err();
        assert!(
            text.contains("kafka.properties: requires kafka.sink = \"rdkafka\""),
            "{text}"
        );
    }
}
