//! The SQL for the first rows of the next window, which most windows consist of. It is one statement that does little besides:
//! a busy outbox is polled hundreds of times per second, and most of the cost is the start of each index scan.
//!
//! The snapshot of the statement is the end of the window. New rows are found by seq. Late rows are found by one range of
//! transaction ids: those from the previous xmax on, and the recent ones ([`RecentTransactions`]) that were in progress.
//! Older transactions rarely complete. The statement only reports that one has, and the caller then reads the window with the SQL
//! in [`pending`](super::pending).

use std::time::{Duration, Instant};

use tokio_postgres::{Row, types::ToSql};

use super::{ReadError, page::COLUMNS};
use crate::postgres::{
    snapshot::{Snapshot, Xid},
    window::Cursor,
};

/// The number of rows read after which transactions are no longer recent, at the latest after twice as many. A poll reads the
/// index entries of recent transactions again, and skips them.
const MAX_RECENT_ROWS: usize = 1_000;
/// The time after which a transaction is no longer recent, at the latest after twice as long.
const RECENT: Duration = Duration::from_millis(250);

/// Evaluated once.
const END_SNAPSHOT: &str = "(select pg_current_snapshot())";
/// The condition that a transaction has completed since the last window, also evaluated once. Without it an idle relay would read
/// the rows of an open transaction with each poll.
const HAS_CHANGED: &str = "(select pg_current_snapshot()::text) <> $1::pg_snapshot::text";

/// The parameters of the statement.
pub(super) struct NextWindowQuery<'a> {
    start_snapshot: &'a Snapshot,
    max_seq: i64,
    max_rows: i64,
    /// The lowest transaction id of late rows.
    first_xid: Xid,
    /// The transactions below it that were in progress.
    older: Vec<Xid>,
}

/// Returns the statement. In its first row the last two columns are the snapshot at the end of the window, and whether an older
/// transaction has completed. Late rows follow, in any order, then new rows by seq.
pub(super) fn next_window_sql(outbox: &str) -> String {
    let nulls = COLUMNS.split(',').map(|_| "null").collect::<Vec<_>>();
    format!(
        "select {nulls}, {END_SNAPSHOT}, exists (
             select from unnest($5::xid8[]) as older (xid) where pg_visible_in_snapshot(older.xid, {END_SNAPSHOT}))
         union all
         (select {COLUMNS}, null, null from {outbox}
          where {HAS_CHANGED} and xid >= $4::xid8 and seq + 0 <= $2::bigint
              and not pg_visible_in_snapshot(xid, $1) and pg_visible_in_snapshot(xid, {END_SNAPSHOT})
          limit $3::bigint)
         union all
         (select {COLUMNS}, null, null from {outbox}
          where {HAS_CHANGED} and seq > $2::bigint and pg_visible_in_snapshot(xid, {END_SNAPSHOT})
          order by seq limit $3::bigint)",
        nulls = nulls.join(", "),
    )
}

impl<'a> NextWindowQuery<'a> {
    pub(super) fn new(cursor: &'a Cursor, recent: &RecentTransactions, max_rows: usize) -> Self {
        let start_snapshot = cursor.start_snapshot();
        let in_progress = start_snapshot.in_progress();
        let (recent, older): (Vec<u64>, Vec<u64>) =
            (in_progress.iter()).partition(|xid| **xid >= recent.first_xid);
        let first_xid = match cursor.may_have_late_rows() {
            true => recent.into_iter().min().unwrap_or(start_snapshot.xmax()),
            // The range would be the whole index.
            false => u64::MAX,
        };
        Self {
            start_snapshot,
            max_seq: cursor.max_seq(),
            max_rows: i64::try_from(max_rows).unwrap_or(i64::MAX),
            first_xid: Xid(first_xid),
            older: older.into_iter().map(Xid).collect(),
        }
    }

    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [
            self.start_snapshot,
            &self.max_seq,
            &self.max_rows,
            &self.first_xid,
            &self.older,
        ]
    }
}

/// The first row of the result.
pub(super) struct Header {
    pub(super) end_snapshot: Snapshot,
    /// True if an older transaction has completed. It may have late rows.
    pub(super) older_has_completed: bool,
}

impl Header {
    pub(super) fn decode(row: &Row) -> Result<Self, ReadError> {
        let first = row.len().saturating_sub(2);
        let end_snapshot: Option<Snapshot> = row.try_get(first)?;
        Ok(Self {
            end_snapshot: end_snapshot.ok_or(ReadError::Layout("no snapshot"))?,
            older_has_completed: row.try_get(first + 1)?,
        })
    }
}

/// The recent transactions: those with an id from `first_xid` on. Few of their rows were read, and they began a moment ago.
///
/// A transaction that stays open becomes an older one. Otherwise each poll would read its uncommitted rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecentTransactions {
    first_xid: u64,
    /// The next `first_xid`, and what was read since it was chosen.
    next_xid: u64,
    since: Instant,
    rows: usize,
}

impl RecentTransactions {
    /// Returns none: no transaction is known to have few rows.
    pub(super) fn none(now: Instant) -> Self {
        Self {
            first_xid: u64::MAX,
            next_xid: u64::MAX,
            since: now,
            rows: 0,
        }
    }

    /// Records a window that was read as a whole.
    pub(super) fn add(&mut self, rows: usize, end_snapshot: &Snapshot, now: Instant) {
        if self.first_xid == u64::MAX || rows > MAX_RECENT_ROWS {
            self.restart(end_snapshot, now);
            return;
        }
        self.rows += rows;
        if self.rows > MAX_RECENT_ROWS || now - self.since > RECENT {
            let first_xid = self.next_xid;
            self.restart(end_snapshot, now);
            self.first_xid = first_xid;
        }
    }

    /// Records a window with many rows.
    pub(super) fn restart(&mut self, end_snapshot: &Snapshot, now: Instant) {
        // A transaction from this xmax on is not complete, so none of its rows was read.
        *self = Self {
            first_xid: end_snapshot.xmax(),
            next_xid: end_snapshot.xmax(),
            since: now,
            rows: 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lowest transaction id of late rows, and the older transactions.
    fn split(recent: RecentTransactions) -> (u64, Vec<u64>) {
        let cursor = Cursor::new("5:20:5,12,15".parse().unwrap(), 7, None);
        let query = NextWindowQuery::new(&cursor, &recent, 10);
        let older = query.older.iter().map(|xid| xid.0).collect();
        (query.first_xid.0, older)
    }

    #[test]
    fn transactions_before_many_rows_or_a_long_time_are_older() {
        let now = Instant::now();
        let window = |end_snapshot: &str| end_snapshot.parse::<Snapshot>().unwrap();
        let mut recent = RecentTransactions::none(now);
        assert_eq!(split(recent), (20, vec![5, 12, 15]));
        recent.add(1, &window("5:10:5"), now);
        assert_eq!(split(recent), (12, vec![5]));
        // The first window that exceeds a limit is still recent.
        recent.add(MAX_RECENT_ROWS, &window("5:13:5,12"), now);
        recent.add(1, &window("5:14:5,12"), now);
        assert_eq!(split(recent), (12, vec![5]));
        recent.add(1, &window("5:16:5,12,15"), now + 2 * RECENT);
        assert_eq!(split(recent), (15, vec![5, 12]));
        recent.add(MAX_RECENT_ROWS + 1, &window("5:18:5,12,15"), now);
        assert_eq!(split(recent), (20, vec![5, 12, 15]));
    }
}
