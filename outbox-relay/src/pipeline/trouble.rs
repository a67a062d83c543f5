//! What an error of a source means to an operator.

use super::error::SourceError;
use crate::{
    hints,
    kafka::SinkError,
    ops::status::{Reason, Trouble},
    postgres::{checkpoint::CheckpointError, reader::ReadError, session::DatabaseError},
};

/// The error in the terms of the status.
pub(super) fn of(err: &SourceError) -> Trouble {
    Trouble {
        reason: reason(err),
        error: program::chain(err),
        fix: fix(err),
    }
}

fn reason(err: &SourceError) -> Reason {
    match err {
        SourceError::Checkpoint(CheckpointError::Superseded | CheckpointError::Led) => {
            Reason::LostLead
        }
        SourceError::Read(ReadError::Row { .. } | ReadError::Unreadable { .. }) => Reason::Refused,
        SourceError::Checkpoint(CheckpointError::Database(_))
        | SourceError::Database(_)
        | SourceError::Read(_) => Reason::Database,
        SourceError::Checkpoint(
            CheckpointError::Foreign(_)
            | CheckpointError::OtherTable { .. }
            | CheckpointError::Malformed(_)
            | CheckpointError::ForeignRows { .. }
            | CheckpointError::Timeless,
        )
        | SourceError::CheckpointFromTheFuture { .. }
        | SourceError::ForeignRows { .. } => Reason::Checkpoint,
        SourceError::Unopened(SinkError::Fenced) | SourceError::Sink(SinkError::Fenced) => {
            Reason::Fenced
        }
        SourceError::Unopened(_) | SourceError::Sink(_) | SourceError::FlushTimeout(_) => {
            Reason::Kafka
        }
        SourceError::DeadLetterTopic(_)
        | SourceError::Refused { .. }
        | SourceError::Checkpoint(CheckpointError::SharedEventId) => Reason::Refused,
        SourceError::OneOfMany { .. }
        | SourceError::SetAside { .. }
        | SourceError::Checkpoint(CheckpointError::Gone) => Reason::OneByOne,
    }
}

fn fix(err: &SourceError) -> Option<&'static str> {
    match err {
        SourceError::Checkpoint(CheckpointError::Database(DatabaseError::Failed(err)))
        | SourceError::Database(DatabaseError::Failed(err)) => Some(hints::for_postgres(err)),
        SourceError::Checkpoint(CheckpointError::Database(DatabaseError::Silent(_)))
        | SourceError::Database(DatabaseError::Silent(_)) => Some(hints::SILENT_POSTGRES),
        SourceError::Read(err) => Some(err.hint()),
        SourceError::Unopened(SinkError::Unavailable(_))
        | SourceError::Sink(SinkError::Unavailable(_))
        | SourceError::FlushTimeout(_) => Some(hints::KAFKA_AWAY),
        SourceError::DeadLetterTopic(_) => Some(hints::LETTERS_REFUSED),
        SourceError::Refused { .. } => Some(hints::REFUSED),
        SourceError::Checkpoint(CheckpointError::SharedEventId) => Some(hints::SHARED_EVENT_ID),
        _ => None,
    }
}
