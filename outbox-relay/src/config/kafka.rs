//! The table `[kafka]`: the Kafka cluster and the limits on what is in flight.

use std::time::Duration;

use cli::Problems;
use serde::Deserialize;

use super::{
    Compression, KafkaConfig, KafkaProperties, KafkaSecurity, SinkKind,
    sasl::{SaslTable, parse_sasl},
    tls::{TlsTable, parse_tls},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct KafkaTable {
    brokers: Option<String>,
    sink: SinkKind,
    compression: Compression,
    delivery_timeout_ms: u64,
    max_in_flight_records: usize,
    max_in_flight_bytes: usize,
    max_record_bytes: usize,
    tls: Option<TlsTable>,
    sasl: Option<SaslTable>,
    properties: toml::Table,
}

impl Default for KafkaTable {
    fn default() -> Self {
        Self {
            brokers: None,
            sink: SinkKind::default(),
            compression: Compression::default(),
            delivery_timeout_ms: 30_000,
            max_in_flight_records: 20_000,
            max_in_flight_bytes: 32 * 1024 * 1024,
            max_record_bytes: 1_000_000,
            tls: None,
            sasl: None,
            properties: toml::Table::new(),
        }
    }
}

impl KafkaTable {
    pub(super) fn parse(
        self,
        variable: &dyn Fn(&str) -> Option<String>,
        problems: &mut Problems,
    ) -> Option<KafkaConfig> {
        let brokers = variable("OUTBOX_RELAY_KAFKA_BROKERS")
            .or(self.brokers)
            .unwrap_or_default();
        if brokers.trim().is_empty() {
            problems.add(
                "kafka.brokers",
                "missing; set it or OUTBOX_RELAY_KAFKA_BROKERS to host:port",
            );
        }
        for broker in brokers.split(',').map(str::trim) {
            if !brokers.trim().is_empty() && !is_broker(broker) {
                problems.add(
                    "kafka.brokers",
                    format!(
                        "invalid address {broker:?}; must be host:port, such as localhost:9092"
                    ),
                );
            }
        }
        let mut validate_range = |name: &str, value: usize, low: usize, high: usize| {
            if !(low..=high).contains(&value) {
                problems.add(
                    format!("kafka.{name}"),
                    format!("invalid value {value}; must be between {low} and {high}"),
                );
            }
        };
        let delivery_timeout_ms = usize::try_from(self.delivery_timeout_ms).unwrap_or(usize::MAX);
        validate_range("delivery_timeout_ms", delivery_timeout_ms, 100, 300_000);
        validate_range(
            "max_in_flight_records",
            self.max_in_flight_records,
            1,
            1_000_000,
        );
        validate_range(
            "max_in_flight_bytes",
            self.max_in_flight_bytes,
            1024 * 1024,
            1 << 30,
        );
        validate_range(
            "max_record_bytes",
            self.max_record_bytes,
            1_000,
            100_000_000,
        );
        if self.max_record_bytes > self.max_in_flight_bytes {
            problems.add(
                "kafka.max_record_bytes",
                "must not exceed kafka.max_in_flight_bytes",
            );
        }
        let security = KafkaSecurity {
            tls: parse_tls(self.tls, variable, problems),
            sasl: parse_sasl(self.sasl, self.sink, variable, problems),
        };
        let sasl = security.sasl.as_ref();
        let delivery_timeout = Duration::from_millis(self.delivery_timeout_ms);
        let properties =
            KafkaProperties::parse(self.properties, self.sink, sasl, delivery_timeout, problems);
        Some(KafkaConfig {
            brokers,
            sink: self.sink,
            compression: self.compression,
            delivery_timeout,
            max_in_flight_records: self.max_in_flight_records,
            max_in_flight_bytes: self.max_in_flight_bytes,
            max_record_bytes: self.max_record_bytes,
            security,
            properties,
        })
    }
}

/// Returns true for `host:port`.
fn is_broker(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        !host.is_empty() && is_port
    })
}
