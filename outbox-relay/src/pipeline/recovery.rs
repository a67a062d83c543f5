//! The table from error to recovery.

use super::error::{HaltCause, SourceError};
use crate::{
    hints,
    kafka::SinkError,
    ops::status::Reason,
    postgres::{checkpoint::CheckpointError, reader::ReadError, session::DatabaseError},
};

/// The recovery of a source from an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recovery {
    /// The reason to report. It also decides whether the source is halted.
    pub(super) reason: Reason,
    pub(super) hint: Option<&'static str>,
    /// True if the acknowledged position is still stored before the restart. False if a write to the relay's tables has just
    /// failed. True does not mean that this relay still leads: a former leader's update fails, because its epoch is lower.
    pub(super) stores_checkpoint: bool,
    /// True if the next attempt has half as many records in flight. A slow broker that gets the same load times out again.
    pub(super) halves_in_flight: bool,
    /// Rows that the next attempt publishes one by one, because the first of them is known to fail.
    pub(super) one_by_one_rows: u64,
}

impl Recovery {
    fn new(reason: Reason, hint: Option<&'static str>) -> Self {
        Self {
            reason,
            hint,
            stores_checkpoint: true,
            halves_in_flight: false,
            one_by_one_rows: 0,
        }
    }

    /// Returns the recovery from an error. Lists every variant, so that a new one needs a decision here.
    pub(super) fn from(err: &SourceError) -> Self {
        match err {
            SourceError::Checkpoint(err) => Self {
                // `RowDeleted` is detected before anything is stored.
                stores_checkpoint: matches!(err, CheckpointError::RowDeleted),
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
                Self::new(Reason::Rejected, Some(hints::DEAD_LETTER_TOPIC))
            }
            SourceError::Rejected { halt_cause, .. } => {
                let hint = match halt_cause {
                    HaltCause::Policy => hints::REJECTED,
                    HaltCause::CannotPark => hints::CANNOT_PARK,
                    HaltCause::Environment => hints::REJECTED_BY_ENVIRONMENT,
                    HaltCause::Streak => hints::CONSECUTIVE_REJECTIONS,
                };
                Self {
                    one_by_one_rows: 1,
                    ..Self::new(Reason::Rejected, Some(hint))
                }
            }
            // The error contains the hint.
            SourceError::CheckpointFromTheFuture { .. } | SourceError::ForeignRows { .. } => {
                Self::new(Reason::Checkpoint, None)
            }
            SourceError::FlushTimeout(_) => {
                Self::new(Reason::Kafka, Some(hints::KAFKA_UNAVAILABLE))
            }
        }
    }

    fn from_checkpoint(err: &CheckpointError) -> Self {
        match err {
            CheckpointError::Database(err) => Self::from_database(err),
            CheckpointError::Superseded | CheckpointError::HasLeader => {
                Self::new(Reason::LostLeadership, None)
            }
            CheckpointError::OtherCluster(_)
            | CheckpointError::OtherTable { .. }
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
            DatabaseError::Url(_) => Some(hints::DATABASE_URL),
            DatabaseError::Moved => Some(hints::MOVED),
            // The error contains the hint.
            DatabaseError::Rejected { .. } | DatabaseError::Pooler(_) => None,
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
                one_by_one_rows: 1,
                ..Self::new(Reason::Rejected, hint)
            },
        }
    }

    fn from_sink(err: &SinkError) -> Self {
        match err {
            SinkError::Unavailable(_) => Self::new(Reason::Kafka, Some(hints::KAFKA_UNAVAILABLE)),
            SinkError::Unauthenticated(_) => Self::new(Reason::Kafka, Some(hints::CREDENTIALS)),
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
    use crate::postgres::verification::FutureRow;

    fn unavailable() -> SinkError {
        SinkError::Unavailable("away".into())
    }

    fn rejected() -> SinkError {
        SinkError::rejected("t", "too large")
    }

    #[test]
    fn each_error_has_its_recovery() {
        use Reason::{Checkpoint, Database, Fenced, Kafka, LostLeadership, OneByOne, Rejected};
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
                Some(hints::DATABASE_URL),
            ),
            (
                CheckpointError::Database(silent()).into(),
                Database,
                Some(hints::SILENT_POSTGRES),
            ),
            (CheckpointError::Superseded.into(), LostLeadership, None),
            (CheckpointError::HasLeader.into(), LostLeadership, None),
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
                Some(hints::KAFKA_UNAVAILABLE),
            ),
            (SourceError::Opening(rejected()), Kafka, None),
            (SourceError::Opening(SinkError::Fenced), Fenced, None),
            (
                SourceError::Sink(unavailable()),
                Kafka,
                Some(hints::KAFKA_UNAVAILABLE),
            ),
            (SourceError::Sink(rejected()), Kafka, None),
            (SourceError::Sink(SinkError::Fenced), Fenced, None),
            (
                SourceError::DeadLetterTopic(rejected()),
                Rejected,
                Some(hints::DEAD_LETTER_TOPIC),
            ),
            (halt(HaltCause::Policy), Rejected, Some(hints::REJECTED)),
            (
                halt(HaltCause::Environment),
                Rejected,
                Some(hints::REJECTED_BY_ENVIRONMENT),
            ),
            (
                halt(HaltCause::Streak),
                Rejected,
                Some(hints::CONSECUTIVE_REJECTIONS),
            ),
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
                Some(hints::KAFKA_UNAVAILABLE),
            ),
        ];
        for (err, reason, hint) in table {
            let recovery = Recovery::from(&err);
            assert_eq!((recovery.reason, recovery.hint), (reason, hint), "{err:?}");
        }
    }

    fn halt(halt_cause: HaltCause) -> SourceError {
        SourceError::Rejected {
            halt_cause,
            event_id: Uuid::nil(),
            seq: 1,
            key: "k".into(),
            source: rejected(),
        }
    }

    #[test]
    fn a_relay_that_may_have_lost_the_leadership_stores_nothing() {
        for err in [
            CheckpointError::Superseded,
            CheckpointError::HasLeader,
            CheckpointError::Database(DatabaseError::Timeout(Duration::ZERO)),
            CheckpointError::SharedEventId,
        ] {
            assert!(!Recovery::from(&err.into()).stores_checkpoint);
        }
        for err in [
            CheckpointError::RowDeleted.into(),
            SourceError::Sink(SinkError::Fenced),
            ReadError::Timeout(Duration::ZERO).into(),
            halt(HaltCause::Policy),
        ] {
            assert!(Recovery::from(&err).stores_checkpoint, "{err:?}");
        }
    }

    #[test]
    fn only_a_slow_broker_halves_the_records_in_flight() {
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
    fn a_row_that_halts_the_source_is_retried_alone() {
        assert_eq!(Recovery::from(&halt(HaltCause::Streak)).one_by_one_rows, 1);
        for err in [
            SourceError::Sink(unavailable()),
            SourceError::DeadLetterTopic(rejected()),
            CheckpointError::RowDeleted.into(),
        ] {
            assert_eq!(Recovery::from(&err).one_by_one_rows, 0, "{err:?}");
        }
    }
}
