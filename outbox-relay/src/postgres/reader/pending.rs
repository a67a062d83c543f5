//! The SQL of a window: the rows that are due. What is put into the text are numbers,
//! and the outbox as the configuration's mapping says it.
//!
//! A row is due if its transaction is visible in the window's snapshot and was not in the one
//! before. With `seq` that splits in two: new rows above the highest seq seen, and stragglers up to
//! it. Of the new ones it is enough to look at the window's snapshot: all that was visible before has a lower seq. A straggler's transaction was in progress, so it was either listed as such or has an id from
//! xmax on. Leaving the latter out looks right and loses rows.
//!
//! Right after a partition was filled or emptied the planner knows nothing of it, so that each branch
//! leaves it one index only: new rows are found by seq, and stragglers by (xid, seq), because of them no
//! condition is on seq as it stands.

use std::{fmt::Write as _, sync::Arc};

use crate::postgres::window::{Cursor, Position, Snapshot, Window};

/// Late transactions that get a branch of their own. More of them would save less, for they have
/// fewer rows each; and the planner takes half a millisecond for a branch.
pub(super) const MAX_BRANCHES: usize = 16;

/// Where to look for a window's stragglers.
#[derive(Clone, Debug)]
pub(super) enum Stragglers {
    /// In everything that was in progress. It costs a look at all of them, whatever a page takes.
    Anywhere,
    /// In these transactions, of each in the order of seq: no more rows are looked at than a page
    /// takes, however many a transaction has.
    Of(Arc<[u64]>),
}

/// What is asked of a window's rows: the first of those that come next.
pub(super) struct PageQuery<'a> {
    pub(super) columns: &'a str,
    pub(super) outbox: &'a str,
    pub(super) cursor: &'a Cursor,
    pub(super) stragglers: &'a Stragglers,
    /// No row beyond this seq is looked at.
    pub(super) last_seq: i64,
    pub(super) max_rows: usize,
    pub(super) order: Order,
}

/// The order in which rows come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Those that share a seq in any order: the index has no other, and a sort takes a third of a page's time.
    Seq,
    /// That of their positions.
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
        let (seen, max_seq) = (cursor.seen(), cursor.max_seq());
        let (upto, done) = match cursor.window() {
            Some(window) => (window.upto.as_ref(), window.done),
            None => (seen, Position::behind(max_seq)),
        };
        let visible = format!("pg_visible_in_snapshot(xid, '{upto}')");
        // No row that was visible in `seen` has such a seq, unless its xid is another cluster's: replicated or restored.
        // Such a row is new as well.
        let start = match done.seq > max_seq {
            true => done,
            false => Position::behind(max_seq),
        };
        let mut new = format!(
            "select {columns} from {outbox} where {} and {visible}",
            behind(start, "seq")
        );
        if last_seq < i64::MAX {
            let _ = write!(new, " and seq <= {}", bigint(last_seq));
        }
        let late = |condition: &str| {
            format!(
                "select {columns} from {outbox} where {condition} and {} and seq + 0 <= {}",
                behind(done, "seq + 0"),
                bigint(max_seq.min(last_seq))
            )
        };
        let order = self.order.columns();
        let mut branches = new;
        match self.stragglers {
            _ if !cursor.expects_stragglers() => {}
            Stragglers::Of(xids) => {
                branches = format!("({branches} order by {order} limit {max_rows})");
                for xid in &**xids {
                    let _ = write!(
                        branches,
                        " union all (select {columns} from {outbox} where {}
                          order by xid, {order} limit {max_rows})",
                        of_transaction(&format!("'{xid}'"), done, max_seq.min(last_seq))
                    );
                }
            }
            // A branch costs the planner more than a small page costs to read, so none is there in vain:
            // a transaction that is still open is no straggler yet.
            Stragglers::Anywhere => {
                let listed = listed(cursor, upto);
                if !listed.is_empty() {
                    let late = late(&format!("xid = any ('{{{listed}}}'::xid8[])"));
                    let _ = write!(branches, " union all {late}");
                }
                if upto.xmax() > seen.xmax() {
                    let late = late(&format!("xid >= '{}' and {visible}", seen.xmax()));
                    let _ = write!(branches, " union all {late}");
                }
            }
        }
        format!("select * from ({branches}) as due order by {order} limit {max_rows}")
    }
}

/// The transactions in which the stragglers of a window are that are still to be read, one more than
/// [`MAX_BRANCHES`] at most. This looks at every row of the window that has an id from xmax on, in
/// the index alone.
pub(super) fn late_transactions_sql(outbox: &str, cursor: &Cursor, window: &Window) -> String {
    let (upto, done, max_seq) = (&window.upto, window.done, cursor.max_seq());
    format!(
        "select xid from unnest('{{{listed}}}'::xid8[]) as listed (xid)
         where exists (select from {outbox} where {of_listed})
         union
         select xid from {outbox}
         where xid >= '{xmax}' and {behind} and seq + 0 <= {max_seq}
             and pg_visible_in_snapshot(xid, '{upto}')
         limit {limit}",
        of_listed = of_transaction("listed.xid", done, max_seq),
        listed = listed(cursor, upto),
        xmax = cursor.seen().xmax(),
        behind = behind(done, "seq + 0"),
        max_seq = bigint(max_seq),
        limit = MAX_BRANCHES + 1,
    )
}

/// The rows of one transaction behind a position and up to a seq. As rows are compared, these are a range of the index,
/// and come from it in their order.
fn of_transaction(xid: &str, done: Position, last_seq: i64) -> String {
    let (comparison, rest) = match done.event_id {
        None => (">", String::new()),
        Some(_) => (">=", format!(" and {}", behind(done, "seq + 0"))),
    };
    format!(
        "(outbox.xid, outbox.seq) {comparison} ({xid}, {})
         and (outbox.xid, outbox.seq) <= ({xid}, {}){rest}",
        bigint(done.seq),
        bigint(last_seq),
    )
}

/// The rows behind a position. One without an event id can't be read, and is behind all others with its seq.
fn behind(Position { seq, event_id }: Position, column: &str) -> String {
    let seq = bigint(seq);
    match event_id {
        None => format!("{column} > {seq}"),
        Some(event_id) => format!(
            "{column} >= {seq} and ({column} > {seq} or event_id > '{event_id}' or event_id is null)"
        ),
    }
}

/// The lowest bigint, written as digits, is a `numeric`, for which no index on a bigint serves.
fn bigint(number: i64) -> String {
    format!("'{number}'::bigint")
}

/// The transactions that were listed as in progress and are completed now.
fn listed(cursor: &Cursor, upto: &Snapshot) -> String {
    let listed = cursor.seen().in_progress().iter();
    let completed: Vec<String> = listed
        .filter(|xid| upto.sees(**xid))
        .map(ToString::to_string)
        .collect();
    completed.join(",")
}
