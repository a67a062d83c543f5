//! Errors that end publishing.

use std::time::Duration;

use crate::{
    kafka::SinkError,
    postgres::{
        checkpoint::CheckpointError, reader::ReadError, session::DatabaseError,
        verification::FutureRow,
    },
};

/// An error that stops publishing. [`Recovery`](super::recovery::Recovery) decides how the source continues.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Opening(SinkError),
    #[error("dead_letter_topic is unusable")]
    DeadLetterTopic(#[source] SinkError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("event {event_id} (seq {seq}, key {key:?}) was rejected and blocks this source")]
    Rejected {
        event_id: uuid::Uuid,
        seq: i64,
        key: String,
        halt_cause: HaltCause,
        source: SinkError,
    },
    #[error(
        "checkpoint {checkpoint} is ahead of the database, probably because it was restored from a dump. If so, run \
         `outbox-relay reset --source {name}` to publish every row of the outbox again"
    )]
    CheckpointFromTheFuture { name: String, checkpoint: String },
    #[error(
        "{table} has rows of another Postgres: the row with seq {} has transaction id {}, but the next id here is {}. {hint}",
        row.seq, row.xid, row.next_xid
    )]
    ForeignRows {
        table: String,
        row: FutureRow,
        hint: String,
    },
    #[error("the records in flight were not acknowledged within {0:?}")]
    FlushTimeout(Duration),
}

/// Why a rejected event halts the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HaltCause {
    /// The policy is `halt`.
    Policy,
    /// The policy is `park_key`, but the key cannot be parked.
    CannotPark,
    /// The policy does not apply, because every record of the topic is rejected until the environment is repaired.
    Environment,
    /// The policy is `dead_letter`, but `max_consecutive_rejections` events of the topic were rejected.
    Streak,
}
