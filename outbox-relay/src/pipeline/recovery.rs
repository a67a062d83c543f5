//! What follows an error of a source: one table.

use super::error::SourceError;
use crate::{
    hints,
    kafka::SinkError,
    ops::status::Reason,
    postgres::{checkpoint::CheckpointError, reader::ReadError, session::DatabaseError},
};

/// What follows an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recovery {
    /// What to call it. It also says whether the source goes on by itself.
    pub(super) reason: Reason,
    /// What an operator can do about it.
    pub(super) hint: Option<&'static str>,
    /// Whether this relay still leads the source, and so may store what was acknowledged before the error. Where that
    /// is not known, it must not: the checkpoint may be another leader's.
    pub(super) keeps_leadership: bool,
    /// Whether the next attempt has half as many records in flight: a slow broker that gets the same again times out again.
    pub(super) halves_in_flight: bool,
    /// Rows that the next attempt publishes one at a time: the next one is known to be a problem.
    pub(super) one_at_a_time: u64,
}

impl Recovery {
    fn new(reason: Reason, hint: Option<&'static str>) -> Self {
        Self {
            reason,
            hint,
            keeps_leadership: true,
            halves_in_flight: false,
            one_at_a_time: 0,
        }
    }

    /// What follows this error. Every error is listed, so that a new one is given a thought.
    pub(super) fn from(err: &SourceError) -> Self {
        match err {
            SourceError::Checkpoint(err) => Self {
                // Gone is found out before anything is stored.
                keeps_leadership: matches!(err, CheckpointError::RowDeleted),
                ..Self::from_checkpoint(err)
            },
            SourceError::Database(err) => Self::from_database(err),
            SourceError::Read(err) => Self::from_read(err),
            SourceError::Opening(err) => Self::from_sink(err),
            SourceError::Sink(err) => Self {
                halves_in_flight: matches!(err, SinkError::Unavailable(_)),
                ..Self::from_sink(err)
            },
            SourceError::DeadLetterTopic(_) => {
                Self::new(Reason::Rejected, Some(hints::LETTERS_REJECTED))
            }
            SourceError::Rejected { .. } => Self {
                one_at_a_time: 1,
                ..Self::new(Reason::Rejected, Some(hints::REJECTED))
            },
            // The error says what to do.
            SourceError::CheckpointFromTheFuture { .. } | SourceError::ForeignRows { .. } => {
                Self::new(Reason::Checkpoint, None)
            }
            SourceError::FlushTimeout(_) => Self::new(Reason::Kafka, Some(hints::KAFKA_AWAY)),
        }
    }

    fn from_checkpoint(err: &CheckpointError) -> Self {
        match err {
            CheckpointError::Database(err) => Self::from_database(err),
            CheckpointError::Superseded | CheckpointError::HasLeader => {
                Self::new(Reason::LostLead, None)
            }
            CheckpointError::OtherCluster(_)
            | CheckpointError::OtherTable { .. }
            | CheckpointError::Malformed(_)
            | CheckpointError::ForeignRows { .. }
            | CheckpointError::NoCreatedAt => Self::new(Reason::Checkpoint, None),
            CheckpointError::RowDeleted => Self::new(Reason::OneByOne, None),
            CheckpointError::SharedEventId => {
                Self::new(Reason::Rejected, Some(hints::SHARED_EVENT_ID))
            }
        }
    }

    fn from_database(err: &DatabaseError) -> Self {
        let hint = match err {
            DatabaseError::Failed(err) => Some(hints::for_postgres(err)),
            DatabaseError::Timeout(_) => Some(hints::SILENT_POSTGRES),
            // The error says what to do.
            DatabaseError::Rejected { .. } | DatabaseError::Url(_) => None,
        };
        Self::new(Reason::Database, hint)
    }

    fn from_read(err: &ReadError) -> Self {
        let hint = Some(err.hint());
        match err {
            ReadError::Database(_) | ReadError::Timeout(_) | ReadError::Layout(_) => {
                Self::new(Reason::Database, hint)
            }
            ReadError::Row { .. } => Self::new(Reason::Rejected, hint),
            ReadError::Unreadable { .. } => Self {
                one_at_a_time: 1,
                ..Self::new(Reason::Rejected, hint)
            },
        }
    }

    fn from_sink(err: &SinkError) -> Self {
        match err {
            SinkError::Unavailable(_) => Self::new(Reason::Kafka, Some(hints::KAFKA_AWAY)),
            SinkError::Rejected { .. } => Self::new(Reason::Kafka, None),
            SinkError::Fenced => Self::new(Reason::Fenced, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::postgres::reader::FutureRow;

    fn unavailable() -> SinkError {
        SinkError::Unavailable("away".into())
    }

    fn rejected() -> SinkError {
        SinkError::rejected("t", "too large")
    }

    #[test]
    fn each_error_has_its_recovery() {
        use Reason::{Checkpoint, Database, Fenced, Kafka, LostLead, OneByOne, Rejected};
        let silent = || DatabaseError::Timeout(Duration::ZERO);
        let table = [
            (
                SourceError::Database(silent()),
                Database,
                Some(hints::SILENT_POSTGRES),
            ),
            (
                SourceError::Database(DatabaseError::Url("?".into())),
                Database,
                None,
            ),
            (
                CheckpointError::Database(silent()).into(),
                Database,
                Some(hints::SILENT_POSTGRES),
            ),
            (CheckpointError::Superseded.into(), LostLead, None),
            (CheckpointError::HasLeader.into(), LostLead, None),
            (
                CheckpointError::OtherCluster("s".into()).into(),
                Checkpoint,
                None,
            ),
            (
                CheckpointError::OtherTable {
                    table: "t".into(),
                    source_name: "s".into(),
                }
                .into(),
                Checkpoint,
                None,
            ),
            (
                CheckpointError::ForeignRows {
                    table: "t".into(),
                    xid: "xid".into(),
                }
                .into(),
                Checkpoint,
                None,
            ),
            (CheckpointError::NoCreatedAt.into(), Checkpoint, None),
            (CheckpointError::RowDeleted.into(), OneByOne, None),
            (
                CheckpointError::SharedEventId.into(),
                Rejected,
                Some(hints::SHARED_EVENT_ID),
            ),
            (
                ReadError::Timeout(Duration::ZERO).into(),
                Database,
                Some(hints::SILENT_POSTGRES),
            ),
            (ReadError::Layout("?").into(), Database, Some(hints::TABLES)),
            (
                ReadError::Row {
                    seq: 1,
                    reason: "?",
                }
                .into(),
                Rejected,
                Some(hints::ROW),
            ),
            (
                SourceError::Opening(unavailable()),
                Kafka,
                Some(hints::KAFKA_AWAY),
            ),
            (SourceError::Opening(rejected()), Kafka, None),
            (SourceError::Opening(SinkError::Fenced), Fenced, None),
            (
                SourceError::Sink(unavailable()),
                Kafka,
                Some(hints::KAFKA_AWAY),
            ),
            (SourceError::Sink(rejected()), Kafka, None),
            (SourceError::Sink(SinkError::Fenced), Fenced, None),
            (
                SourceError::DeadLetterTopic(rejected()),
                Rejected,
                Some(hints::LETTERS_REJECTED),
            ),
            (halt(), Rejected, Some(hints::REJECTED)),
            (
                SourceError::CheckpointFromTheFuture {
                    name: "s".into(),
                    checkpoint: "2:2:".into(),
                },
                Checkpoint,
                None,
            ),
            (
                SourceError::ForeignRows {
                    table: "t".into(),
                    row: FutureRow {
                        seq: "1".into(),
                        xid: "2".into(),
                        next_xid: "1".into(),
                    },
                    hint: "repair it".into(),
                },
                Checkpoint,
                None,
            ),
            (
                SourceError::FlushTimeout(Duration::ZERO),
                Kafka,
                Some(hints::KAFKA_AWAY),
            ),
        ];
        for (err, reason, hint) in table {
            let recovery = Recovery::from(&err);
            assert_eq!((recovery.reason, recovery.hint), (reason, hint), "{err:?}");
        }
    }

    fn halt() -> SourceError {
        SourceError::Rejected {
            event_id: Uuid::nil(),
            seq: 1,
            key: "k".into(),
            source: rejected(),
        }
    }

    #[test]
    fn who_may_have_lost_the_lead_stores_nothing() {
        for err in [
            CheckpointError::Superseded,
            CheckpointError::HasLeader,
            CheckpointError::Database(DatabaseError::Timeout(Duration::ZERO)),
            CheckpointError::SharedEventId,
        ] {
            assert!(!Recovery::from(&err.into()).keeps_leadership);
        }
        for err in [
            CheckpointError::RowDeleted.into(),
            SourceError::Sink(SinkError::Fenced),
            ReadError::Timeout(Duration::ZERO).into(),
            halt(),
        ] {
            assert!(Recovery::from(&err).keeps_leadership, "{err:?}");
        }
    }

    #[test]
    fn only_a_slow_broker_gets_less_at_once() {
        assert!(Recovery::from(&SourceError::Sink(unavailable())).halves_in_flight);
        for err in [
            SourceError::Opening(unavailable()),
            SourceError::Sink(rejected()),
            SourceError::Sink(SinkError::Fenced),
            SourceError::FlushTimeout(Duration::ZERO),
        ] {
            assert!(!Recovery::from(&err).halves_in_flight, "{err:?}");
        }
    }

    #[test]
    fn a_row_that_halts_the_source_is_tried_alone() {
        assert_eq!(Recovery::from(&halt()).one_at_a_time, 1);
        for err in [
            SourceError::Sink(unavailable()),
            SourceError::DeadLetterTopic(rejected()),
            CheckpointError::RowDeleted.into(),
        ] {
            assert_eq!(Recovery::from(&err).one_at_a_time, 0, "{err:?}");
        }
    }
}
