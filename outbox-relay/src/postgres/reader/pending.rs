//! The SQL for the pending rows of an open window. All values are parameters. The text depends only on the mapping, the columns,
//! the order, and whether the position is between rows of one seq.
//!
//! A row is pending if its transaction is visible in the window's snapshot and was not visible in the previous one. There are
//! two kinds. New rows have a seq above `max_seq`, the highest one visible before. For them the window's snapshot alone decides,
//! because no row that was visible before has such a seq. Late rows have `max_seq` or a lower seq. Their transaction was in
//! progress: it was listed in the previous snapshot, or has an id from its xmax on. Omitting the second case looks correct and
//! loses rows.
//!
//! The statistics of a partition are wrong right after it was filled or truncated, and a generic plan does not know the limit.
//! Therefore each branch of the query permits only one index: new rows are found by seq, and late rows by (xid, seq), with
//! `seq + 0` in their other conditions.

use std::sync::Arc;

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::postgres::{
    snapshot::{Snapshot, Xid},
    window::{Cursor, Position},
};

/// The most late transactions that are read one by one. Each may be read up to the limit of the page.
pub(super) const MAX_TRANSACTIONS: usize = 16;

/// The transactions of a window's late rows.
#[derive(Clone, Debug)]
pub(super) enum LateRows {
    /// Any transaction that was in progress. Each page reads the index entries of all of them.
    OfAnyTransaction,
    /// These transactions. Each is read in the order of seq, so a page reads no more rows than it returns per transaction.
    OfTransactions(Arc<[Xid]>),
}

/// The query for the next page of a window.
#[derive(Clone, Copy)]
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

/// The parameters of a page query, in the order of their numbers.
pub(super) struct PageParams<'a> {
    start_snapshot: &'a Snapshot,
    end_snapshot: &'a Snapshot,
    max_rows: i64,
    /// New rows have a seq above `new_after`, up to `new_last`.
    new_after: i64,
    new_last: i64,
    /// Late rows have a seq above `late_after`, up to `late_last`, and an id in one of the ranges from `first_xids` to
    /// `last_xids`.
    late_after: i64,
    late_last: i64,
    first_xids: Vec<Xid>,
    last_xids: Vec<Xid>,
    /// The event id of the position, if it is between rows of one seq. Only then the statement has this parameter.
    event_id: Option<Uuid>,
}

impl PageParams<'_> {
    pub(super) fn to_sql(&self) -> Vec<&(dyn ToSql + Sync)> {
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![
            self.start_snapshot,
            self.end_snapshot,
            &self.max_rows,
            &self.new_after,
            &self.new_last,
            &self.late_after,
            &self.late_last,
            &self.first_xids,
            &self.last_xids,
        ];
        if let Some(event_id) = &self.event_id {
            params.push(event_id);
        }
        params
    }
}

impl<'a> PageQuery<'a> {
    /// Returns the statement.
    pub(super) fn sql(&self) -> String {
        let Self {
            columns, outbox, ..
        } = *self;
        let position = self.position();
        let (new_after, late_after) = match position.event_id {
            None => (after_seq("seq", "$4"), after_seq("seq + 0", "$6")),
            Some(_) if self.starts_with_new_rows() => (
                after_position("seq", "$4", "$10"),
                after_seq("seq + 0", "$6"),
            ),
            Some(_) => (
                after_seq("seq", "$4"),
                after_position("seq + 0", "$6", "$10"),
            ),
        };
        // A range of one transaction is in the order of seq, so its first `$3` rows are enough. A longer range is not: all of its
        // rows are read and sorted.
        format!(
            "select * from (
                 (select late.* from unnest($8::xid8[], $9::xid8[]) as listed (first, last), lateral (
                      select {columns} from {outbox}
                      where {in_range} and {late_after} and seq + 0 <= $7::bigint
                          and not pg_visible_in_snapshot(xid, $1) and pg_visible_in_snapshot(xid, $2)
                      order by xid, {order} limit case when listed.first = listed.last then $3::bigint end
                  ) as late
                  where listed.first < listed.last or pg_visible_in_snapshot(listed.first, $2)
                  order by {order} limit $3::bigint)
                 union all
                 (select {columns} from {outbox}
                  where {new_after} and seq <= $5::bigint and pg_visible_in_snapshot(xid, $2)
                  order by {order} limit $3::bigint)
             ) as pending order by {order} limit $3::bigint",
            in_range = in_range("listed.first", "listed.last", position, "$6", "$7"),
            order = self.order.columns(),
        )
    }

    pub(super) fn params(&self) -> PageParams<'a> {
        let (cursor, position) = (self.cursor, self.position());
        let start_snapshot = cursor.start_snapshot();
        let max_seq = cursor.max_seq();
        let (first_xids, last_xids) = match self.late_rows {
            _ if !cursor.may_have_late_rows() => Default::default(),
            LateRows::OfTransactions(xids) => (xids.to_vec(), xids.to_vec()),
            LateRows::OfAnyTransaction => {
                let listed = start_snapshot.in_progress().iter().map(|xid| Xid(*xid));
                let from_xmax = Xid(start_snapshot.xmax());
                (
                    listed.clone().chain([from_xmax]).collect(),
                    listed.chain([Xid::MAX]).collect(),
                )
            }
        };
        PageParams {
            start_snapshot,
            end_snapshot: cursor
                .window()
                .map_or(start_snapshot, |window| &window.end_snapshot),
            max_rows: i64::try_from(self.max_rows).unwrap_or(i64::MAX),
            // A row above max_seq was not visible in `start_snapshot`, unless its xid comes from another cluster by replication
            // or a restore. Such a row is new as well.
            new_after: position.seq.max(max_seq),
            new_last: self.last_seq,
            late_after: position.seq,
            late_last: max_seq.min(self.last_seq),
            first_xids,
            last_xids,
            event_id: position.event_id,
        }
    }

    fn position(&self) -> Position {
        (self.cursor.window()).map_or(Position::BEGINNING, |window| window.position)
    }

    /// Returns true if all late rows were read.
    fn starts_with_new_rows(&self) -> bool {
        self.position().seq > self.cursor.max_seq()
    }
}

/// Selects the transactions of the unread late rows of a window, at most `$6` of them. An index-only scan reads all rows of the
/// window with an id from xmax on.
///
/// `$1` lists the transactions that were in progress, `$2` is the window's snapshot, `$3` the previous xmax, `$4` and `$7` the
/// position, `$5` the previous highest seq.
pub(super) fn late_transactions_sql(outbox: &str, position: Position) -> String {
    let after = match position.event_id {
        None => after_seq("seq + 0", "$4"),
        Some(_) => after_position("seq + 0", "$4", "$7"),
    };
    format!(
        "select xid from unnest($1::xid8[]) as listed (xid)
         where pg_visible_in_snapshot(listed.xid, $2) and exists (
             select from {outbox} where {in_transaction} and {after})
         union
         select xid from {outbox}
         where xid >= $3::xid8 and {after} and seq + 0 <= $5::bigint and pg_visible_in_snapshot(xid, $2)
         limit $6::bigint",
        in_transaction = in_range("listed.xid", "listed.xid", position, "$4", "$5"),
    )
}

/// Returns the condition for the rows of a range of transactions that is also a range of the index. In the first transaction they
/// are after a position, and in the last one up to a seq. `outbox` is the alias in
/// [`Mapping::outbox`](crate::config::Mapping::outbox).
fn in_range(first: &str, last: &str, position: Position, after: &str, up_to: &str) -> String {
    let comparison = match position.event_id {
        None => ">",
        Some(_) => ">=",
    };
    format!(
        "(outbox.xid, outbox.seq) {comparison} ({first}, {after}::bigint)
         and (outbox.xid, outbox.seq) <= ({last}, {up_to}::bigint)"
    )
}

fn after_seq(column: &str, seq: &str) -> String {
    format!("{column} > {seq}::bigint")
}

/// Returns the condition for the rows after a position with an event id. A row without an event id is unreadable, and follows all
/// others with its seq.
fn after_position(column: &str, seq: &str, event_id: &str) -> String {
    format!(
        "{column} >= {seq}::bigint and ({column} > {seq}::bigint or event_id > {event_id}::uuid or event_id is null)"
    )
}
