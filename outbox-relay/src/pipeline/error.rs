//! What keeps a source from publishing.

use std::time::Duration;

use crate::{
    kafka::SinkError,
    postgres::{
        checkpoint::CheckpointError,
        reader::{FutureRow, ReadError},
        session::DatabaseError,
    },
};

/// What keeps a source from publishing.
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
    #[error("dead_letter_topic can't be used")]
    DeadLetterTopic(#[source] SinkError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("event {event_id} (seq {seq}) of key {key:?} is in the way")]
    Rejected {
        event_id: uuid::Uuid,
        seq: i64,
        key: String,
        source: SinkError,
    },
    #[error(
        "the checkpoint {checkpoint} is ahead of the database: was it restored from a dump? If so, run `outbox-relay reset --source {name}`, which publishes every row that \
         the outbox still holds once more"
    )]
    CheckpointFromTheFuture { name: String, checkpoint: String },
    #[error(
        "{table} has rows of another Postgres: that with seq {} is of transaction {}, and here {} comes next; {hint}",
        row.seq, row.xid, row.next_xid
    )]
    ForeignRows {
        table: String,
        row: FutureRow,
        hint: String,
    },
    #[error("what was in flight was not acknowledged within {0:?}")]
    FlushTimeout(Duration),
}
