//! What the database says of a source when it is asked.

use std::time::Duration;

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
