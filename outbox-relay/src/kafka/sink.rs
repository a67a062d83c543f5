//! Where records go. The table is the retry buffer: a sink never tries again and keeps no more
//! than its bound; on any error it is dropped, and a new one goes on from the checkpoint.

use std::{fmt::Display, time::Duration};

use super::{Acknowledgements, Record};
use crate::{config::KafkaConfig, postgres::Cursor};

/// Takes records in order, and tells which are acknowledged.
pub trait Sink: Send {
    /// Takes a record; waits for room while as much is in flight as may be. It may stay here until
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    /// When this record will not be taken, or the sink is of no use any more. What was not
    /// acknowledged may or may not arrive.
    fn send(&mut self, record: &Record<'_>) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Finds out whether records of this topic can be taken.
    ///
    /// # Errors
    /// When there is no such topic, or the sink is of no use any more.
    fn validate_topic(&mut self, topic: &str)
    -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Sends what is still here.
    ///
    /// # Errors
    /// When the sink is of no use any more.
    fn flush(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Looks after itself; to be called between pages, and often while there is nothing to send.
    ///
    /// # Errors
    /// When the sink is of no use any more.
    fn run_maintenance(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// What became of the records; stays valid beside [`send`](Self::send).
    fn acknowledgements(&self) -> &Acknowledgements;

    /// Whether the broker itself rejects what a predecessor of this sink still sends.
    fn is_fenced(&self) -> bool;
}

/// How often a relay's sink asks its cluster whether anything has changed.
pub(crate) const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(30);

/// What a sink is made with.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// The brokers, and how long and how much may be on its way.
    pub kafka: KafkaConfig,
    /// Records in flight at most; up to the configured number.
    pub max_in_flight: usize,
    /// Where the source stands.
    pub start: Cursor,
    /// How often the cluster is asked whether anything has changed, while nothing fails.
    pub maintenance_interval: Duration,
    /// Names the source towards the brokers, the same for all relays that could publish it. Kafka
    /// calls it a transactional id.
    pub producer_name: String,
}

/// Why records don't get through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Trying again with a new sink can help: the broker is away, slow, or not the leader.
    #[error("Kafka doesn't take records: {0}")]
    Unavailable(String),
    /// A record will not be taken, however often it is tried.
    #[error("a record of topic {topic} is rejected: {reason}")]
    Rejected {
        /// Where the record was to go.
        topic: String,
        /// What the broker says.
        reason: String,
    },
    /// Another relay has become the leader, and the broker rejects this one.
    #[error("Kafka rejects this relay: another one publishes this source now")]
    Fenced,
}

impl SinkError {
    pub(super) fn too_large(topic: &str, bytes: usize, limit: usize, kafka: &KafkaConfig) -> Self {
        let whose = match limit == kafka.max_record_bytes {
            true => "kafka.max_record_bytes",
            false => "the topic's max.message.bytes",
        };
        let reason = format!("it takes {bytes} bytes, and the limit is {limit}, by {whose}");
        Self::rejected(topic, reason)
    }

    pub(crate) fn rejected(topic: &str, reason: impl Display) -> Self {
        Self::Rejected {
            topic: topic.to_owned(),
            reason: reason.to_string(),
        }
    }
}
