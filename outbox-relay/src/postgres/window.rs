//! The arithmetic of positions and cursors. The SQL that selects the pending rows is in `reader/pending.rs`.

use std::sync::Arc;

use uuid::Uuid;

use super::snapshot::Snapshot;

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

    /// Returns true if this window, or the next one if none is open, can have more late rows. They are its first rows, because
    /// their seqs are the lowest.
    pub fn may_have_late_rows(&self) -> bool {
        let position = (self.window.as_ref()).map_or(Position::BEGINNING, |window| window.position);
        position.seq < self.max_seq || position.seq == self.max_seq && position.event_id.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
