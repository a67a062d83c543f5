//! The SQL of a window: the rows that are due. What is put into the text are numbers,
//! and the outbox as the configuration's mapping says it.
//!
//! A row is due if its transaction is visible in the window's snapshot and was not in the one
//! before. With `seq` that splits in two: new rows above the highest seq seen, and stragglers up to
//! it. A straggler's transaction was in progress, so it was either listed as such or has an id from
//! xmax on. Leaving the latter out looks right and loses rows.
//!
//! Right after a partition was filled or emptied the planner knows nothing of it, so that each branch
//! leaves it one index only: new rows are found by seq, and stragglers by (xid, seq), because of them no
//! condition is on seq as it stands.

use std::{fmt::Write as _, sync::Arc};

use crate::window::{Cursor, Snapshot, Window};

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

/// These columns of the rows of `cursor`'s window that come next.
pub(super) fn page_sql(
    columns: &str,
    outbox: &str,
    cursor: &Cursor,
    stragglers: &Stragglers,
    max_rows: usize,
) -> String {
    let (seen, max_seq) = (cursor.seen(), cursor.max_seq());
    let (upto, done_seq) = match cursor.window() {
        Some(window) => (window.upto.as_ref(), window.done_seq),
        None => (seen, max_seq),
    };
    let visible = format!("pg_visible_in_snapshot(xid, '{upto}')");
    let new = format!(
        "select {columns} from {outbox}
         where seq > {} and not pg_visible_in_snapshot(xid, '{seen}') and {visible}",
        max_seq.max(done_seq),
    );
    let late = |condition: &str| {
        format!(
            "select {columns} from {outbox}
             where {condition} and seq + 0 > {done_seq} and seq + 0 <= {max_seq}"
        )
    };
    let order = format!("order by seq limit {max_rows}");
    let mut branches = new;
    match stragglers {
        _ if !cursor.expects_stragglers() => {}
        Stragglers::Of(xids) => {
            branches = format!("({branches} {order})");
            for xid in &**xids {
                let _ = write!(
                    branches,
                    " union all (select {columns} from {outbox} where {}
                      order by xid, seq limit {max_rows})",
                    of_transaction(&format!("'{xid}'"), done_seq, max_seq)
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
    format!("copy (select * from ({branches}) due {order}) to stdout (format binary)")
}

/// The transactions in which the stragglers of a window are that are still to be read, one more than
/// [`MAX_BRANCHES`] at most. This looks at every row of the window that has an id from xmax on, in
/// the index alone.
pub(super) fn late_transactions_sql(outbox: &str, cursor: &Cursor, window: &Window) -> String {
    let (upto, done_seq, max_seq) = (&window.upto, window.done_seq, cursor.max_seq());
    format!(
        "select xid from unnest('{{{listed}}}'::xid8[]) as listed (xid)
         where exists (select from {outbox} where {of_listed})
         union
         select xid from {outbox}
         where xid >= '{xmax}' and seq + 0 > {done_seq} and seq + 0 <= {max_seq}
             and pg_visible_in_snapshot(xid, '{upto}')
         limit {limit}",
        of_listed = of_transaction("listed.xid", done_seq, max_seq),
        listed = listed(cursor, upto),
        xmax = cursor.seen().xmax(),
        limit = MAX_BRANCHES + 1,
    )
}

/// The rows of one transaction between two seqs. As rows are compared, these are a range of the index,
/// and come from it in their order.
fn of_transaction(xid: &str, done_seq: i64, max_seq: i64) -> String {
    format!(
        "(outbox.xid, outbox.seq) > ({xid}, {done_seq}::bigint)
         and (outbox.xid, outbox.seq) <= ({xid}, {max_seq}::bigint)"
    )
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
