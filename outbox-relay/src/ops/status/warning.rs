//! Problems that do not prevent publishing but need an operator.

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
}

impl WarningReason {
    pub(crate) const ALL: [Self; 3] = [Self::UnpublishableRows, Self::Truncation, Self::Unmeasured];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UnpublishableRows => "unpublishable_rows",
            Self::Truncation => "truncation",
            Self::Unmeasured => "unmeasured",
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
