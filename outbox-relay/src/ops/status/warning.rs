//! Problems that do not prevent publishing but need an operator.

use std::time::Duration;

use serde::Serialize;

use crate::postgres::backlog::UnpublishableRows;

/// A problem of a source that publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Warning {
    pub(crate) reason: WarningReason,
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// The kind of a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WarningReason {
    /// The outbox has rows that are never published.
    UnpublishableRows,
    /// Published partitions are not truncated.
    Truncation,
    /// The backlog and the unpublishable rows cannot be measured.
    Unmeasured,
    /// The brokers throttle this relay because of a quota.
    Throttled,
    /// The relay cannot verify that the database's address leads to the leader's database.
    Address,
    /// The clocks of this machine and of the database disagree.
    Clock,
}

impl WarningReason {
    pub(crate) const ALL: [Self; 6] = [
        Self::UnpublishableRows,
        Self::Truncation,
        Self::Unmeasured,
        Self::Throttled,
        Self::Address,
        Self::Clock,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UnpublishableRows => "unpublishable_rows",
            Self::Truncation => "truncation",
            Self::Unmeasured => "unmeasured",
            Self::Throttled => "throttled",
            Self::Address => "address",
            Self::Clock => "clock",
        }
    }
}

impl Warning {
    /// Returns the warning about a database whose clock is this far ahead of the relay's, if it is.
    pub(crate) fn clock(database_ahead_s: f64) -> Option<Self> {
        let direction = match database_ahead_s {
            0.0 => return None,
            ..0.0 => "behind",
            _ => "ahead of",
        };
        let seconds = database_ahead_s.abs();
        Some(Self {
            reason: WarningReason::Clock,
            message: format!(
                "the clock of the database is {seconds:.0} s {direction} the clock of this machine"
            ),
            hint: "Correct the clock that is wrong. Records get the later time, and the earlier one after Kafka has rejected that."
                .to_owned(),
        })
    }

    /// Returns the warning about a relay that was throttled for `total` since it started.
    pub(crate) fn throttled(total: Duration) -> Self {
        let seconds = total.as_secs_f64();
        Self {
            reason: WarningReason::Throttled,
            message: format!(
                "Kafka throttles this relay because it exceeds a quota, for {seconds:.1} s in total"
            ),
            hint: "Raise producer_byte_rate or request_percentage in the quota of the relay's user or of client id outbox-relay."
                .to_owned(),
        }
    }
}

impl From<&UnpublishableRows> for Warning {
    fn from(unpublishable: &UnpublishableRows) -> Self {
        let UnpublishableRows {
            table,
            rows,
            is_minimum,
            example,
        } = unpublishable;
        let at_least = if *is_minimum { "at least " } else { "" };
        Self {
            reason: WarningReason::UnpublishableRows,
            message: format!(
                "{at_least}{rows} rows of {table} are never published, because seq or transaction id is null or seq is the \
                 minimum of its type. One of them is event {example}"
            ),
            hint: "Repair the writer. Set both columns of the rows to their defaults, unless the rows were published by \
                 another program. Then add the constraint that `outbox-relay check` prints."
                .to_owned(),
        }
    }
}
