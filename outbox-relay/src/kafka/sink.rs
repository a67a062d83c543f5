//! The interface of Kafka producers. The outbox table is the retry buffer: a sink never retries and buffers no more
//! than its limit. On any error it is dropped, and a new sink continues from the checkpoint.

use std::{fmt::Display, time::Duration};

use super::{Acknowledgements, Record};
use crate::{clock::Clock, config::KafkaConfig, postgres::Cursor};

/// Publishes records in order and tracks their acknowledgements.
pub trait Sink: Send {
    /// Sends a record, or buffers it until [`flush`](Self::flush). Waits while the limit on records in flight is
    /// reached.
    ///
    /// # Errors
    /// If the record is rejected, or the sink has failed. Unacknowledged records may or may not arrive.
    fn send(&mut self, record: &Record<'_>) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Checks that the topic exists and accepts records.
    ///
    /// # Errors
    /// If the topic does not exist, or the sink has failed.
    fn validate_topic(&mut self, topic: &str)
    -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Sends the buffered records.
    ///
    /// # Errors
    /// If the sink has failed.
    fn flush(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Does periodic work. Call it between pages, and often while idle.
    ///
    /// # Errors
    /// If the sink has failed.
    fn run_maintenance(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// The state of the records sent so far.
    fn acknowledgements(&self) -> &Acknowledgements;

    /// Returns whether the broker rejects records that a predecessor of this sink still sends.
    fn has_fencing(&self) -> bool;
}

/// The relay's [`SinkOptions::maintenance_interval`]; tests use other ones.
pub(crate) const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(30);

/// The parameters of a sink.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// The brokers, timeouts and size limits.
    pub kafka: KafkaConfig,
    /// The limit on records in flight; at most the configured number.
    pub max_in_flight: usize,
    /// The source's checkpoint.
    pub start: Cursor,
    /// The clock that dates records.
    pub clock: Clock,
    /// The interval between metadata refreshes.
    pub maintenance_interval: Duration,
    /// The transactional id: identifies the source to the brokers, the same for all relays that could publish it.
    pub producer_name: String,
}

/// A failure to publish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// A new sink may succeed: the broker is unreachable, slow, or not the leader.
    #[error("failed to produce to Kafka: {0}")]
    Unavailable(String),
    /// The brokers do not accept the credentials, or there are none to send. The reason contains a hint.
    #[error("failed to produce to Kafka: {0}")]
    Unauthenticated(String),
    /// Kafka will never accept the record.
    #[error("failed to produce to topic {topic}: {reason}")]
    Rejected {
        /// The record's topic.
        topic: String,
        /// The broker's reason.
        reason: String,
        /// Whether other records of the topic would be accepted.
        cause: RejectionCause,
    },
    /// Another relay became the leader, and the broker rejects this one.
    #[error("fenced: another relay publishes this source now")]
    Fenced,
}

/// The cause of a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionCause {
    /// The record, as far as the broker's error tells.
    Record,
    /// The timestamp, which one of the clocks has set.
    Clock,
    /// The environment, such as permissions. Every record of the topic is rejected until an operator repairs it.
    Environment,
}

impl SinkError {
    pub(super) fn too_large(topic: &str, bytes: usize, limit: usize, kafka: &KafkaConfig) -> Self {
        let setting = match limit == kafka.max_record_bytes {
            true => "kafka.max_record_bytes",
            false => "the topic's max.message.bytes",
        };
        let reason =
            format!("the record takes {bytes} bytes, which exceeds {setting} ({limit} bytes)");
        Self::rejected(topic, reason)
    }

    pub(crate) fn rejected(topic: &str, reason: impl Display) -> Self {
        Self::Rejected {
            topic: topic.to_owned(),
            reason: reason.to_string(),
            cause: RejectionCause::Record,
        }
    }

    /// Returns the cause of a rejection. Other errors are faults of the environment.
    pub(crate) fn cause(&self) -> RejectionCause {
        match self {
            Self::Rejected { cause, .. } => *cause,
            Self::Unavailable(_) | Self::Unauthenticated(_) | Self::Fenced => {
                RejectionCause::Environment
            }
        }
    }

    /// Changes the cause of a rejection.
    pub(crate) fn with_cause(mut self, new: RejectionCause) -> Self {
        if let Self::Rejected { cause, .. } = &mut self {
            *cause = new;
        }
        self
    }
}
