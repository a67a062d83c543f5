//! The arithmetic of snapshots, positions and cursors. The SQL that selects the pending rows is in `reader/pending.rs`.

use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

/// A Postgres snapshot (`pg_snapshot`): the set of transactions that had completed when it was taken.
///
/// Transactions below `xmax` had completed, except those in `in_progress`. Transactions from `xmax` on had not completed.
/// They include transactions that were already in progress, because `xmax` is the last *completed* id plus one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

/// The text is not a `pg_snapshot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pg_snapshot")]
pub struct MalformedSnapshot;

impl Snapshot {
    /// Returns the snapshot before the first transaction.
    pub fn beginning() -> Self {
        Self {
            xmin: 1,
            xmax: 1,
            in_progress: Vec::new(),
        }
    }

    /// Returns the last completed transaction id plus one.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Returns the transactions below `xmax` that were in progress.
    pub fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }

    /// Returns true if the transaction had completed, like Postgres' `pg_visible_in_snapshot`.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && !self.in_progress.contains(&xid)
    }

    /// Returns true if this snapshot is later than `now`, the current one. Then the database was restored from a dump, or is
    /// another one.
    pub fn is_ahead_of(&self, now: &Self) -> bool {
        self.xmax > now.xmax
    }
}

impl FromStr for Snapshot {
    type Err = MalformedSnapshot;

    fn from_str(text: &str) -> Result<Self, MalformedSnapshot> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| MalformedSnapshot);
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(MalformedSnapshot);
        let (xmin, xmax, in_progress) = (number(next()?)?, number(next()?)?, next()?);
        let in_progress: Result<_, _> = in_progress
            .split(',')
            .filter(|part| !part.is_empty())
            .map(number)
            .collect();
        Ok(Self {
            xmin,
            xmax,
            in_progress: in_progress?,
        })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.in_progress.iter().enumerate() {
            write!(f, "{}{xid}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A position in a window. Rows are read in the order of seq, and of event id among rows with the same seq.
///
/// Seqs repeat if the sequence was set back, by `setval` or by a restore without sequences. Rows that share seq and event id
/// are copies of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// All rows with a lower seq were read.
    pub seq: i64,
    /// The rows with this seq were read up to this event id. `None` if all of them were read.
    pub event_id: Option<Uuid>,
}

impl Position {
    /// The position before the first row. (A row with the lowest seq, -2^63, is never read.)
    pub const BEGINNING: Self = Self::after(i64::MIN);

    /// Returns the position after all rows with this seq.
    pub const fn after(seq: i64) -> Self {
        Self {
            seq,
            event_id: None,
        }
    }
}

/// The read position in an outbox: everything visible in one snapshot and, while a window is open, the window's rows up to
/// a position.
///
/// A window is the set of rows that became visible between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    start_snapshot: Arc<Snapshot>,
    max_seq: i64,
    window: Option<Window>,
}

/// A window that is being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The snapshot at the end of the window.
    pub end_snapshot: Arc<Snapshot>,
    /// The position up to which the window was read.
    pub position: Position,
}

impl Cursor {
    /// Returns the cursor before the first row.
    pub fn beginning() -> Self {
        Self {
            start_snapshot: Arc::new(Snapshot::beginning()),
            max_seq: i64::MIN,
            window: None,
        }
    }

    /// Returns a cursor from its stored parts.
    pub fn new(
        start_snapshot: Snapshot,
        max_seq: i64,
        window: Option<(Snapshot, Position)>,
    ) -> Self {
        let window = window.map(|(end_snapshot, position)| Window {
            end_snapshot: Arc::new(end_snapshot),
            position,
        });
        Self {
            start_snapshot: Arc::new(start_snapshot),
            max_seq,
            window,
        }
    }

    /// Returns the snapshot of which all visible rows were read.
    pub fn start_snapshot(&self) -> &Snapshot {
        &self.start_snapshot
    }

    /// Returns the highest seq that is visible in [`start_snapshot`](Self::start_snapshot). Rows with a higher seq are new
    /// rows. A pending row with this seq or a lower one is a late row: its transaction was still open then.
    pub fn max_seq(&self) -> i64 {
        self.max_seq
    }

    /// Returns the open window.
    pub fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// Opens the window from [`start_snapshot`](Self::start_snapshot) to `now`. The previous window must be closed.
    pub fn open(&mut self, now: Snapshot) {
        debug_assert!(self.window.is_none(), "the previous window is still open");
        self.window = Some(Window {
            end_snapshot: Arc::new(now),
            position: Position::BEGINNING,
        });
    }

    /// Moves the position in the open window.
    pub fn advance(&mut self, position: Position) {
        if let Some(window) = &mut self.window {
            window.position = position;
        }
    }

    /// Returns the seq at the position if some of its rows may be unread.
    pub(crate) fn partially_read_seq(&self) -> Option<i64> {
        let position = self.window.as_ref()?.position;
        position.event_id.map(|_| position.seq)
    }

    /// Returns the cursor after all rows with the seq at the position.
    pub(crate) fn after_current_seq(&self) -> Self {
        let mut after = self.clone();
        if let Some(Window { position, .. }) = &mut after.window {
            position.event_id = None;
        }
        after
    }

    /// Closes the window after its last row was read.
    pub fn close(&mut self) {
        if let Some(Window {
            end_snapshot,
            position,
        }) = self.window.take()
        {
            self.start_snapshot = end_snapshot;
            self.max_seq = self.max_seq.max(position.seq);
        }
    }

    /// Returns true if this window can have more late rows. They are its first rows, because their seqs are the lowest.
    pub fn may_have_late_rows(&self) -> bool {
        self.window.as_ref().is_some_and(|Window { position, .. }| {
            position.seq < self.max_seq
                || position.seq == self.max_seq && position.event_id.is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_snapshot_round_trips_through_text(
            xmin in 1..u64::MAX / 2,
            ahead in 0..1_000_u64,
            in_progress in prop::collection::vec(1..u64::MAX, 0..20),
        ) {
            let snapshot = Snapshot { xmin, xmax: xmin + ahead, in_progress };
            prop_assert_eq!(snapshot.to_string().parse(), Ok(snapshot));
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = text.parse::<Snapshot>();
        }
    }

    #[test]
    fn valid_snapshots_are_parsed_and_others_rejected() {
        for text in ["1:1:", "10:20:", "10:20:10", "10:20:10,14,15"] {
            assert_eq!(text.parse::<Snapshot>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "-1:2:", "1:2:3:4"] {
            assert_eq!(text.parse::<Snapshot>(), Err(MalformedSnapshot), "{text}");
        }
    }

    #[test]
    fn a_snapshot_sees_completed_transactions() {
        let snapshot: Snapshot = "10:20:10,15".parse().unwrap();
        let seen: Vec<u64> = (8..22).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 14, 16, 17, 18, 19]);
    }

    #[test]
    fn a_window_of_late_rows_keeps_the_highest_seq() {
        let mut cursor = Cursor::new("5:9:5".parse().unwrap(), 40, None);
        cursor.open("9:9:".parse().unwrap());
        assert!(cursor.may_have_late_rows());
        cursor.advance(Position::after(12));
        assert!(cursor.may_have_late_rows());
        cursor.close();
        assert_eq!(cursor, Cursor::new("9:9:".parse().unwrap(), 40, None));
    }

    #[test]
    fn after_the_highest_seq_no_late_rows_are_expected() {
        let mut cursor = Cursor::new("5:9:5".parse().unwrap(), 40, None);
        cursor.open("9:12:".parse().unwrap());
        cursor.advance(Position::after(40));
        assert!(!cursor.may_have_late_rows());
        cursor.advance(Position::after(41));
        cursor.close();
        assert_eq!(cursor.max_seq(), 41);
    }

    #[test]
    fn rows_that_share_the_highest_seq_are_late_rows_until_all_are_read() {
        let mut cursor = Cursor::new("5:9:5".parse().unwrap(), 40, None);
        cursor.open("9:12:".parse().unwrap());
        cursor.advance(Position {
            seq: 40,
            event_id: Some(Uuid::nil()),
        });
        assert!(cursor.may_have_late_rows());
        cursor.advance(Position::after(40));
        assert!(!cursor.may_have_late_rows());
    }

    #[test]
    fn the_first_window_has_no_late_rows() {
        let mut cursor = Cursor::beginning();
        cursor.open("9:12:".parse().unwrap());
        assert!(!cursor.may_have_late_rows());
    }
}
