//! What the database says of a source when it is asked.

use std::time::Duration;

use super::{Warning, WarningReason};

/// What was measured in a source's database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) pending: Pending,
    /// How large the outbox is, with its indexes.
    pub(crate) outbox_bytes: i64,
    pub(crate) parked_keys: i64,
    pub(crate) dead_letters: i64,
    /// The checkpoint's age, by the database's clock.
    pub(crate) checkpoint_age: Option<Duration>,
    /// The checkpoint as text: it moves if this changes.
    pub(crate) checkpoint: String,
    /// Who holds the source's lock, where this relay stands by.
    pub(crate) leader: Option<String>,
    pub(crate) unpublishable: Option<UnpublishableRows>,
}

/// Rows without a seq or a transaction id: nothing can tell when they were committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnpublishableRows {
    pub(crate) table: String,
    pub(crate) rows: i64,
    /// There may be more.
    pub(crate) is_minimum: bool,
    /// The event id of one of them, as its column has it.
    pub(crate) example: String,
}

impl UnpublishableRows {
    pub(super) fn warning(&self) -> Warning {
        let Self {
            table,
            rows,
            is_minimum,
            example,
        } = self;
        let at_least = if *is_minimum { "at least " } else { "" };
        Warning {
            reason: WarningReason::UnpublishableRows,
            message: format!(
                "{at_least}{rows} rows of {table} have no seq or no transaction id and are never published, \
                 among them event {example}"
            ),
            hint: "repair the writer, give the rows both columns' defaults if nobody else has published them, then add \
                 the constraint of outbox-relay/sql/columns-online.sql"
                .to_owned(),
        }
    }
}

/// Rows that are committed and not shipped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    pub(crate) rows: i64,
    /// There are too many to be counted; the number is taken from seq, which has gaps.
    pub(crate) is_estimate: bool,
    /// The age of the oldest of them, in seconds; none where rows don't tell when they were written.
    pub(crate) oldest_age_s: Option<f64>,
    /// The highest seq there is.
    pub(crate) newest_seq: i64,
    /// The highest seq that was shipped.
    pub(crate) done_seq: i64,
}
