//! The SQL for the pending rows of a window. Only numbers and the mapping's table expression are inserted into the text.
//!
//! A row is pending if its transaction is visible in the window's snapshot and was not visible in the previous one. There are
//! two kinds. New rows have a seq above `max_seq`, the highest one visible before: for them the window's snapshot alone decides, because all rows
//! that were visible before have a lower seq. Late rows have a lower seq: their transaction was in progress. It was either listed
//! in the previous snapshot or has an id from its xmax on. Omitting the second case looks correct and loses rows.
//!
//! The statistics of a partition are wrong right after it was filled or truncated. Therefore each branch of the query permits
//! only one index: new rows are found by seq, and late rows by (xid, seq), with `seq + 0` in their other conditions.

use std::{fmt::Write as _, sync::Arc};

use crate::postgres::window::{Cursor, Position, Snapshot, Window};

/// The limit on late transactions with a separate branch. Planning a branch takes half a millisecond, and more transactions
/// have fewer rows each.
pub(super) const MAX_BRANCHES: usize = 16;

/// The transactions of a window's late rows.
#[derive(Clone, Debug)]
pub(super) enum LateRows {
    /// Any transaction that was in progress. Each page reads the index entries of all of them.
    OfAnyTransaction,
    /// These transactions. Each is read in the order of seq, so a page reads no more rows than it returns per transaction.
    OfTransactions(Arc<[u64]>),
}

/// The query for the next page of a window.
pub(super) struct PageQuery<'a> {
    pub(super) columns: &'a str,
    pub(super) outbox: &'a str,
    pub(super) cursor: &'a Cursor,
    pub(super) late_rows: &'a LateRows,
    /// The highest seq to read.
    pub(super) last_seq: i64,
    pub(super) max_rows: usize,
    pub(super) order: Order,
}

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// By seq alone, which is the order of the index: sorting by position takes a third of a page's time.
    Seq,
    /// By seq and event id.
    Position,
}

impl Order {
    fn columns(self) -> &'static str {
        match self {
            Self::Seq => "seq",
            Self::Position => "seq, event_id",
        }
    }
}

impl PageQuery<'_> {
    pub(super) fn sql(&self) -> String {
        let Self {
            columns,
            outbox,
            cursor,
            last_seq,
            max_rows,
            ..
        } = *self;
        let (start_snapshot, max_seq) = (cursor.start_snapshot(), cursor.max_seq());
        let (end_snapshot, position) = match cursor.window() {
            Some(window) => (window.end_snapshot.as_ref(), window.position),
            None => (start_snapshot, Position::after(max_seq)),
        };
        let visible = format!("pg_visible_in_snapshot(xid, '{end_snapshot}')");
        // A row above max_seq was not visible in `start_snapshot`, unless its xid comes from another cluster by replication or
        // a restore. Such a row is new as well.
        let start = match position.seq > max_seq {
            true => position,
            false => Position::after(max_seq),
        };
        let mut new = format!(
            "select {columns} from {outbox} where {} and {visible}",
            after(start, "seq")
        );
        if last_seq < i64::MAX {
            let _ = write!(new, " and seq <= {}", bigint(last_seq));
        }
        let late = |condition: &str| {
            format!(
                "select {columns} from {outbox} where {condition} and {} and seq + 0 <= {}",
                after(position, "seq + 0"),
                bigint(max_seq.min(last_seq))
            )
        };
        let order = self.order.columns();
        let mut branches = new;
        match self.late_rows {
            _ if !cursor.may_have_late_rows() => {}
            LateRows::OfTransactions(xids) => {
                branches = format!("({branches} order by {order} limit {max_rows})");
                for xid in &**xids {
                    let _ = write!(
                        branches,
                        " union all (select {columns} from {outbox} where {}
                          order by xid, {order} limit {max_rows})",
                        transaction_condition(&format!("'{xid}'"), position, max_seq.min(last_seq))
                    );
                }
            }
            // Planning a branch costs more than reading a small page, so empty branches are left out: a transaction that
            // is still open has no late rows yet.
            LateRows::OfAnyTransaction => {
                let listed = list_completed(cursor, end_snapshot);
                if !listed.is_empty() {
                    let late = late(&format!("xid = any ('{{{listed}}}'::xid8[])"));
                    let _ = write!(branches, " union all {late}");
                }
                if end_snapshot.xmax() > start_snapshot.xmax() {
                    let late = late(&format!("xid >= '{}' and {visible}", start_snapshot.xmax()));
                    let _ = write!(branches, " union all {late}");
                }
            }
        }
        format!("select * from ({branches}) as pending order by {order} limit {max_rows}")
    }
}

/// Selects the transactions of the unread late rows of a window, at most one more than [`MAX_BRANCHES`]. An index-only scan
/// reads all rows of the window with an id from xmax on.
pub(super) fn late_transactions_sql(outbox: &str, cursor: &Cursor, window: &Window) -> String {
    let (end_snapshot, position, max_seq) =
        (&window.end_snapshot, window.position, cursor.max_seq());
    format!(
        "select xid from unnest('{{{listed}}}'::xid8[]) as listed (xid)
         where exists (select from {outbox} where {of_listed})
         union
         select xid from {outbox}
         where xid >= '{xmax}' and {after} and seq + 0 <= {max_seq}
             and pg_visible_in_snapshot(xid, '{end_snapshot}')
         limit {limit}",
        of_listed = transaction_condition("listed.xid", position, max_seq),
        listed = list_completed(cursor, end_snapshot),
        xmax = cursor.start_snapshot().xmax(),
        after = after(position, "seq + 0"),
        max_seq = bigint(max_seq),
        limit = MAX_BRANCHES + 1,
    )
}

/// Returns the condition for the rows of one transaction after a position and up to a seq. The row comparison makes them a
/// range of the index, in its order. `outbox` is the alias in [`Mapping::outbox`](crate::config::Mapping::outbox).
fn transaction_condition(xid: &str, position: Position, last_seq: i64) -> String {
    let (comparison, rest) = match position.event_id {
        None => (">", String::new()),
        Some(_) => (">=", format!(" and {}", after(position, "seq + 0"))),
    };
    format!(
        "(outbox.xid, outbox.seq) {comparison} ({xid}, {})
         and (outbox.xid, outbox.seq) <= ({xid}, {}){rest}",
        bigint(position.seq),
        bigint(last_seq),
    )
}

/// Returns the condition for the rows after a position. A row without an event id is unreadable, and follows all others with
/// its seq.
fn after(Position { seq, event_id }: Position, column: &str) -> String {
    let seq = bigint(seq);
    match event_id {
        None => format!("{column} > {seq}"),
        Some(event_id) => format!(
            "{column} >= {seq} and ({column} > {seq} or event_id > '{event_id}' or event_id is null)"
        ),
    }
}

/// Formats a bigint literal. Without the cast the lowest bigint is a `numeric`, which can't use an index on bigint.
fn bigint(number: i64) -> String {
    format!("'{number}'::bigint")
}

/// Lists the transactions that were in progress in the previous snapshot and have completed.
fn list_completed(cursor: &Cursor, end_snapshot: &Snapshot) -> String {
    let listed = cursor.start_snapshot().in_progress().iter();
    let completed: Vec<String> = listed
        .filter(|xid| end_snapshot.sees(**xid))
        .map(ToString::to_string)
        .collect();
    completed.join(",")
}
