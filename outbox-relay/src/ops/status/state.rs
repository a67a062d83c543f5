//! The roles and states of a source, and the reasons of a restart.

use serde::Serialize;

/// The role of this relay for a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Not elected yet, or the outbox was not read yet.
    Starting,
    /// Another relay leads. This one takes over when it ends.
    Standby,
    Leader,
    /// The relay has shut down.
    Stopped,
}

/// The role of this relay for a source, combined with the source's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Starting,
    Standby,
    /// Leader without pending rows.
    Idle,
    /// Leader with pending rows or recent records.
    Publishing,
    /// Leader with parked keys. All other keys are published.
    Parked,
    /// Not publishing. It recovers automatically when the cause is gone.
    Stalled,
    /// Not publishing. An operator has to act.
    Halted,
    Stopped,
}

impl State {
    pub(crate) const ALL: [Self; 8] = [
        Self::Starting,
        Self::Standby,
        Self::Idle,
        Self::Publishing,
        Self::Parked,
        Self::Stalled,
        Self::Halted,
        Self::Stopped,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Standby => "standby",
            Self::Idle => "idle",
            Self::Publishing => "publishing",
            Self::Parked => "parked",
            Self::Stalled => "stalled",
            Self::Halted => "halted",
            Self::Stopped => "stopped",
        }
    }
}

/// The reason why a source restarted from the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Postgres is unavailable, silent, or returned an error.
    Database,
    /// Kafka is unavailable or slow, or a partition has a new leader.
    Kafka,
    /// The producer was fenced: another relay publishes the source.
    Fenced,
    /// Another relay was elected.
    LostLeadership,
    /// A record or row blocks the source: Kafka rejects it permanently, it cannot be read, or the dead-letter topic is
    /// unusable.
    Rejected,
    /// A rejection made the sink unusable. Either all records in flight are sent again one by one to find the rejected one, or
    /// that one is now parked, dead-lettered or deleted, and publishing continues after it.
    OneByOne,
    /// The checkpoint or the rows belong to another database.
    Checkpoint,
}

impl Reason {
    pub(crate) const ALL: [Self; 7] = [
        Self::Database,
        Self::Kafka,
        Self::Fenced,
        Self::LostLeadership,
        Self::Rejected,
        Self::OneByOne,
        Self::Checkpoint,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Kafka => "kafka",
            Self::Fenced => "fenced",
            Self::LostLeadership => "lost_lead",
            Self::Rejected => "rejected",
            Self::OneByOne => "one_by_one",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Returns true if publishing resumes only after an operator has acted.
    pub(crate) fn halts(self) -> bool {
        matches!(self, Self::Rejected | Self::Checkpoint)
    }
}
