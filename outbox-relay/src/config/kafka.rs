//! The table `[kafka]`: where records go.

use std::time::Duration;

use cli::Problems;
use serde::Deserialize;

use super::{
    KafkaConfig, KafkaProperties, KafkaSecurity, SinkKind,
    security::{SaslTable, TlsTable},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct KafkaTable {
    brokers: Option<String>,
    sink: SinkKind,
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
            delivery_timeout_ms: 2_000,
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
    pub(super) fn check(
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
                "is missing: set it to host:port, or OUTBOX_RELAY_KAFKA_BROKERS",
            );
        }
        for broker in brokers.split(',').map(str::trim) {
            if !brokers.trim().is_empty() && !is_broker(broker) {
                problems.add(
                    "kafka.brokers",
                    format!("{broker:?} isn't like localhost:9092; give host and port"),
                );
            }
        }
        let mut within = |name: &str, value: usize, low: usize, high: usize| {
            if !(low..=high).contains(&value) {
                problems.add(
                    format!("kafka.{name}"),
                    format!("{value} isn't from {low} to {high}"),
                );
            }
        };
        let delivery_timeout_ms = usize::try_from(self.delivery_timeout_ms).unwrap_or(usize::MAX);
        within("delivery_timeout_ms", delivery_timeout_ms, 100, 300_000);
        within(
            "max_in_flight_records",
            self.max_in_flight_records,
            1,
            1_000_000,
        );
        within(
            "max_in_flight_bytes",
            self.max_in_flight_bytes,
            1024 * 1024,
            1 << 30,
        );
        within(
            "max_record_bytes",
            self.max_record_bytes,
            1_000,
            100_000_000,
        );
        if self.max_record_bytes > self.max_in_flight_bytes {
            problems.add(
                "kafka.max_record_bytes",
                "is more than max_in_flight_bytes: such a record could never be sent",
            );
        }
        let security = KafkaSecurity::check(self.tls, self.sasl, variable, problems);
        let sasl = security.sasl.as_ref();
        let delivery_timeout = Duration::from_millis(self.delivery_timeout_ms);
        let properties =
            KafkaProperties::check(self.properties, self.sink, sasl, delivery_timeout, problems);
        Some(KafkaConfig {
            brokers,
            sink: self.sink,
            delivery_timeout,
            max_in_flight_records: self.max_in_flight_records,
            max_in_flight_bytes: self.max_in_flight_bytes,
            max_record_bytes: self.max_record_bytes,
            security,
            properties,
        })
    }
}

/// Whether this is `host:port`.
fn is_broker(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        !host.is_empty() && is_port
    })
}
