//! Where records go. The table is the retry buffer: a sink never tries again and keeps no more
//! than its bound; on any error it is dropped, and a new one goes on from the checkpoint.

mod in_flight;
mod rdkafka;

pub use self::{in_flight::InFlight, rdkafka::RdKafkaSink};
use crate::route::Record;

/// Takes records in order, and tells which are acknowledged.
pub trait Sink: Send {
    /// Hands over a record; waits for room while as much is in flight as may be.
    ///
    /// # Errors
    /// When the sink is of no use any more. What was not acknowledged may or may not arrive.
    fn send(&mut self, record: &Record<'_>) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// What became of the records; stays valid beside [`send`](Self::send).
    fn in_flight(&self) -> &InFlight;
}

/// Why records don't get through.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SinkError {
    /// Trying again with a new sink can help: the broker is away, slow, or not the leader.
    #[error("Kafka doesn't take records: {0}")]
    Unavailable(String),
    /// This record will not be taken, however often it is tried.
    #[error("Kafka refuses a record of topic {topic}, key {key:?}: {reason}")]
    Refused {
        /// Where the record was to go.
        topic: String,
        /// Its key.
        key: String,
        /// What the broker says.
        reason: String,
    },
}
