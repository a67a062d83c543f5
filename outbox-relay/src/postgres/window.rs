//! Where a relay stands, and what is due next: arithmetic on Postgres snapshots, and nothing else.

use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

/// A Postgres snapshot, `pg_snapshot`: which transactions were completed when it was taken.
///
/// Transactions below `xmax` were, but for those in `in_progress`; those from `xmax` on were not.
/// Note that a transaction that was in progress can also have an id from `xmax` on, because `xmax`
/// is the last *completed* id plus one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

/// The text is no `pg_snapshot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pg_snapshot")]
pub struct MalformedSnapshot;

impl Snapshot {
    /// The snapshot in which nothing has happened yet.
    pub fn beginning() -> Self {
        Self {
            xmin: 1,
            xmax: 1,
            in_progress: Vec::new(),
        }
    }

    /// The first id that was assigned to no completed transaction.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// The transactions below `xmax` that were in progress.
    pub fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }

    /// Whether the transaction was completed when this snapshot was taken. (Postgres' own
    /// `pg_visible_in_snapshot`.)
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && !self.in_progress.contains(&xid)
    }

    /// Whether this snapshot can't have been taken in a database that is only as far as `now`:
    /// the database was restored from a dump, or is another one.
    pub fn lies_in_the_future_of(&self, now: &Self) -> bool {
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

/// A place in the order in which the rows of a window are read: by seq, and among rows with the same seq by event id.
///
/// A sequence gives each number once, but it can be set back: by a restore without sequences, by `setval`. Rows that
/// share seq and event id are copies of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Every row with a lower seq was read.
    pub seq: i64,
    /// Of the rows with this seq, those up to this event id were read; all of them if it is `None`.
    pub event_id: Option<Uuid>,
}

impl Position {
    /// Before the first row. (The one seq that nothing precedes, -2^63, is never read.)
    pub const BEGINNING: Self = Self::behind(i64::MIN);

    /// Behind every row with this seq.
    pub const fn behind(seq: i64) -> Self {
        Self {
            seq,
            event_id: None,
        }
    }
}

/// How far the outbox was read: everything visible in one snapshot, and, while a window is open,
/// the part of the window up to a position.
///
/// A window is what became visible between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    seen: Arc<Snapshot>,
    max_seq: i64,
    window: Option<Window>,
}

/// The part of a window that is still to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows visible in this snapshot belong to the window.
    pub upto: Arc<Snapshot>,
    /// Rows up to here were read.
    pub done: Position,
}

impl Cursor {
    /// Nothing was read yet.
    pub fn beginning() -> Self {
        Self {
            seen: Arc::new(Snapshot::beginning()),
            max_seq: i64::MIN,
            window: None,
        }
    }

    /// A cursor that was stored.
    pub fn new(seen: Snapshot, max_seq: i64, window: Option<(Snapshot, Position)>) -> Self {
        let window = window.map(|(upto, done)| Window {
            upto: Arc::new(upto),
            done,
        });
        Self {
            seen: Arc::new(seen),
            max_seq,
            window,
        }
    }

    /// Everything visible in this snapshot was read.
    pub fn seen(&self) -> &Snapshot {
        &self.seen
    }

    /// The highest seq of what is visible in [`seen`](Self::seen). Rows above it are new; a row up
    /// to it that was not visible then is a straggler, whose transaction took its time.
    pub fn max_seq(&self) -> i64 {
        self.max_seq
    }

    /// The window that is open.
    pub fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// Opens the window that reaches from what was seen to `now`. An open one must be read first.
    pub fn open(&mut self, now: Snapshot) {
        debug_assert!(self.window.is_none(), "a window is open");
        self.window = Some(Window {
            upto: Arc::new(now),
            done: Position::BEGINNING,
        });
    }

    /// The window was read up to here.
    pub fn advance(&mut self, done: Position) {
        if let Some(window) = &mut self.window {
            window.done = done;
        }
    }

    /// The seq of which some rows were read, and others maybe not.
    pub(crate) fn seq_read_in_part(&self) -> Option<i64> {
        let done = self.window.as_ref()?.done;
        done.event_id.map(|_| done.seq)
    }

    /// The same, or a little further on: no seq is read in part.
    pub(crate) fn behind_whole_seqs(&self) -> Self {
        let mut behind = self.clone();
        if let Some(Window { done, .. }) = &mut behind.window {
            done.event_id = None;
        }
        behind
    }

    /// The window was read to its end.
    pub fn close(&mut self) {
        if let Some(Window { upto, done }) = self.window.take() {
            self.seen = upto;
            self.max_seq = self.max_seq.max(done.seq);
        }
    }

    /// Whether a straggler can still come in this window. They are the first of it, because they
    /// have the lowest seqs.
    pub fn expects_stragglers(&self) -> bool {
        self.window.as_ref().is_some_and(|Window { done, .. }| {
            done.seq < self.max_seq || done.seq == self.max_seq && done.event_id.is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_snapshot_survives_its_text(
            xmin in 1..u64::MAX / 2,
            ahead in 0..1_000_u64,
            in_progress in prop::collection::vec(1..u64::MAX, 0..20),
        ) {
            let snapshot = Snapshot { xmin, xmax: xmin + ahead, in_progress };
            prop_assert_eq!(snapshot.to_string().parse(), Ok(snapshot));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Snapshot>();
        }
    }

    #[test]
    fn snapshots_of_postgres_are_read() {
        for text in ["1:1:", "10:20:", "10:20:10", "10:20:10,14,15"] {
            assert_eq!(text.parse::<Snapshot>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "-1:2:", "1:2:3:4"] {
            assert_eq!(text.parse::<Snapshot>(), Err(MalformedSnapshot), "{text}");
        }
    }

    #[test]
    fn a_snapshot_sees_what_was_completed() {
        let snapshot: Snapshot = "10:20:10,15".parse().unwrap();
        let seen: Vec<u64> = (8..22).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 14, 16, 17, 18, 19]);
    }

    #[test]
    fn a_window_of_stragglers_leaves_the_highest_seq() {
        let mut cursor = Cursor::new("5:9:5".parse().unwrap(), 40, None);
        cursor.open("9:9:".parse().unwrap());
        assert!(cursor.expects_stragglers());
        cursor.advance(Position::behind(12));
        assert!(cursor.expects_stragglers());
        cursor.close();
        assert_eq!(cursor, Cursor::new("9:9:".parse().unwrap(), 40, None));
    }

    #[test]
    fn behind_the_highest_seq_only_new_rows_come() {
        let mut cursor = Cursor::new("5:9:5".parse().unwrap(), 40, None);
        cursor.open("9:12:".parse().unwrap());
        cursor.advance(Position::behind(40));
        assert!(!cursor.expects_stragglers());
        cursor.advance(Position::behind(41));
        cursor.close();
        assert_eq!(cursor.max_seq(), 41);
    }

    #[test]
    fn rows_that_share_the_highest_seq_are_stragglers_until_the_last_of_them_was_read() {
        let mut cursor = Cursor::new("5:9:5".parse().unwrap(), 40, None);
        cursor.open("9:12:".parse().unwrap());
        cursor.advance(Position {
            seq: 40,
            event_id: Some(Uuid::nil()),
        });
        assert!(cursor.expects_stragglers());
        cursor.advance(Position::behind(40));
        assert!(!cursor.expects_stragglers());
    }

    #[test]
    fn a_first_window_expects_no_stragglers() {
        let mut cursor = Cursor::beginning();
        cursor.open("9:12:".parse().unwrap());
        assert!(!cursor.expects_stragglers());
    }
}
