//! The words for what a source is doing and for what keeps it from that.

use serde::Serialize;

/// What a source can be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Not there yet.
    Starting,
    /// Another relay leads; this one takes over when it goes.
    Standby,
    /// It publishes.
    Leader,
    /// It ended as it was asked to.
    Stopped,
}

/// What a source is doing, in one word for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Not there yet.
    Starting,
    /// Another relay publishes.
    Standby,
    /// It leads, and nothing is due.
    Idle,
    /// It leads, and events arrive.
    Publishing,
    /// It publishes, but for keys that wait because Kafka rejected an event of theirs.
    Parked,
    /// It does not publish, and goes on by itself when what keeps it from that is gone.
    Stalled,
    /// It does not publish, and somebody has to do something.
    Halted,
    /// It ended as it was asked to.
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

/// Why publishing had to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Postgres is away, silent, or rejects.
    Database,
    /// Kafka is away, slow, or not the leader.
    Kafka,
    /// Kafka rejected this relay, because another one publishes the source.
    Fenced,
    /// Another relay has taken the lead.
    LostLead,
    /// A record is in the way that Kafka rejects for good.
    Rejected,
    /// A record was rejected among others: they are sent one by one, or it was set aside.
    OneByOne,
    /// The checkpoint is of another database.
    Checkpoint,
}

impl Reason {
    pub(crate) const ALL: [Self; 7] = [
        Self::Database,
        Self::Kafka,
        Self::Fenced,
        Self::LostLead,
        Self::Rejected,
        Self::OneByOne,
        Self::Checkpoint,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Kafka => "kafka",
            Self::Fenced => "fenced",
            Self::LostLead => "lost_lead",
            Self::Rejected => "rejected",
            Self::OneByOne => "one_by_one",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Whether it passes only if somebody does something.
    pub(crate) fn halts(self) -> bool {
        matches!(self, Self::Rejected | Self::Checkpoint)
    }
}
