//! What does not keep a source from publishing, and needs somebody all the same.

use serde::Serialize;

use crate::postgres::backlog::UnpublishableRows;

/// Something that is wrong with a source that publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Warning {
    pub(crate) reason: WarningReason,
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: String,
}

/// What a warning is about, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WarningReason {
    /// The outbox has rows that can never be published.
    UnpublishableRows,
    /// Partitions that were published are not truncated.
    Truncation,
    /// Nobody knows what waits, and whether there are rows that can never be published.
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
                "{at_least}{rows} rows of {table} have no seq, the lowest there is, or no transaction id and are never \
                 published, among them event {example}"
            ),
            hint: "repair the writer, give the rows both columns' defaults if nobody else has published them, then add \
                 the constraint of outbox-relay/sql/columns-online.sql"
                .to_owned(),
        }
    }
}
