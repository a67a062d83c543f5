//! What librdkafka reports: deliveries, failures and throttling.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientContext, Statistics,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Headers as _, Message as _},
    producer::{DeliveryResult, NoCustomPartitioner, ProducerContext},
};

use super::queue::{self, Queue};
use crate::kafka::{Acknowledgements, RejectionCause, SinkError};

/// Receives delivery reports, on librdkafka's thread.
pub(super) struct DeliveryReports {
    pub(super) acknowledgements: Acknowledgements,
    pub(super) queue: Arc<Queue>,
}

impl ClientContext for DeliveryReports {
    /// At debug level: librdkafka logs every second while a broker is unreachable, and failures are reported elsewhere.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn stats(&self, statistics: Statistics) {
        let brokers = statistics.brokers.into_values();
        let throttled_ms: i64 = brokers
            .filter_map(|broker| Some(broker.throttle?.sum))
            .sum();
        let throttle_time = Duration::from_millis(u64::try_from(throttled_ms).unwrap_or(0));
        self.acknowledgements.record_throttle(throttle_time);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode as Code;
        tracing::debug!(%error, reason, "librdkafka");
        // An idle relay would not notice otherwise that the brokers are unreachable.
        if let Some(Code::Fatal | Code::AllBrokersDown | Code::SSL | Code::Authentication) =
            error.rdkafka_error_code()
        {
            let reason = reason.to_owned();
            self.acknowledgements.fail(SinkError::Unavailable(reason));
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for DeliveryReports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let message = match result {
            Ok(message) | Err((_, message)) => message,
        };
        let headers = message
            .headers()
            .into_iter()
            .flat_map(|headers| headers.iter());
        let headers = headers.map(|header| (header.key, header.value.unwrap_or_default()));
        let bytes = queue::bytes_of(
            message.key().unwrap_or_default(),
            message.payload(),
            headers,
        );
        self.queue.remove(bytes);
        match result {
            Ok(_) => self.acknowledgements.acknowledge([number as u64]),
            Err((err, message)) => self.acknowledgements.fail(classify(err, message.topic())),
        }
    }
}

/// Distinguishes rejections from errors after which a new producer may succeed.
pub(super) fn classify(err: &KafkaError, topic: &str) -> SinkError {
    use RDKafkaErrorCode as Code;
    match err.rdkafka_error_code() {
        Some(
            Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::MessageBatchTooLarge
            | Code::InvalidRecord
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::PolicyViolation,
        ) => SinkError::rejected(topic, err),
        Some(Code::TopicAuthorizationFailed) => {
            SinkError::rejected(topic, err).with_cause(RejectionCause::Environment)
        }
        Some(Code::InvalidTimestamp) => {
            SinkError::rejected(topic, err).with_cause(RejectionCause::Clock)
        }
        _ => SinkError::Unavailable(err.to_string()),
    }
}
