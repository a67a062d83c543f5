//! Finds the orders of a user that have changed since a position, for WatchOrders.
//!
//! Neither timestamps nor ids reflect the commit order: a transaction that started earlier can commit
//! later, and a reader that remembers the newest id misses it. A position is therefore a snapshot, and
//! the next poll reads the rows that are not visible in it, as outbox-relay does (docs/adr/0001).

use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bool, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl as _;
use uuid::Uuid;

use super::{OrderRow, Store};
use crate::{domain::Order, error::Error};

/// A position in the changes of a user's orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Everything visible in this snapshot has been read.
    start_snapshot: String,
    /// A partly read window of changes.
    window: Option<Window>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    end_snapshot: String,
    after_xid: String,
    after_order: Uuid,
}

impl Position {
    /// Returns the position before all changes.
    pub fn beginning() -> Self {
        Self::at_snapshot("1:1:".to_owned())
    }

    fn at_snapshot(snapshot: String) -> Self {
        Self {
            start_snapshot: snapshot,
            window: None,
        }
    }

    /// Returns the newest snapshot of the position.
    fn newest_snapshot(&self) -> &str {
        let window = self.window.as_ref();
        window.map_or(&self.start_snapshot, |window| &window.end_snapshot)
    }

    /// Formats the position for a resume token. The token must be signed, because [`parse`](Self::parse)
    /// does not validate snapshots.
    pub fn to_text(&self) -> String {
        match &self.window {
            None => self.start_snapshot.clone(),
            Some(Window {
                end_snapshot,
                after_xid,
                after_order,
            }) => format!(
                "{};{end_snapshot};{after_xid};{after_order}",
                self.start_snapshot
            ),
        }
    }

    /// Parses the output of [`to_text`](Self::to_text).
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(';').collect();
        let window = match parts[1..] {
            [] => None,
            [end_snapshot, after_xid, after_order] => Some(Window {
                end_snapshot: end_snapshot.to_owned(),
                after_xid: after_xid.to_owned(),
                after_order: after_order.parse().ok()?,
            }),
            _ => return None,
        };
        Some(Self {
            start_snapshot: parts[0].to_owned(),
            window,
        })
    }
}

/// The changes since a position.
#[derive(Debug)]
pub struct Changes {
    /// The changed orders, each with the position after it.
    pub orders: Vec<(Order, Position)>,
    /// The position after all of them.
    pub position: Position,
    /// False if more changes can be read now.
    pub is_complete: bool,
}

/// Reads the current snapshot, and detects positions and orders from before a restore. A restored
/// database restarts its transaction ids, so an older position or order can have an id that is still in
/// the future, and such an order is visible in no snapshot.
const SNAPSHOT_STATE: &str = "select pg_current_snapshot()::text as snapshot,
    pg_snapshot_xmax($1::pg_snapshot) > pg_snapshot_xmax(pg_current_snapshot()) as is_foreign,
    exists (select from orders where user_id = $2
        and changed_xid >= pg_snapshot_xmax(pg_current_snapshot())) as has_foreign_orders";

/// Gives such orders a current transaction id. Locks by id, the order that all transactions use.
const ADOPT_FOREIGN_ORDERS: &str = "
    with foreign_orders as (
        select order_id from orders
        where user_id = $1 and changed_xid >= pg_snapshot_xmax(pg_current_snapshot())
        order by order_id for no key update
    )
    update orders set changed_xid = pg_current_xact_id()
    from foreign_orders where orders.order_id = foreign_orders.order_id";

const CHANGES: &str = "
    select order_id, user_id, amount_minor, currency, state, cancel_reason, version, create_time,
        update_time, changed_xid::text
    from orders
    where user_id = $1 and changed_xid >= pg_snapshot_xmin($2::pg_snapshot)
        and not pg_visible_in_snapshot(changed_xid, $2::pg_snapshot)
        and pg_visible_in_snapshot(changed_xid, $3::pg_snapshot)
        and (changed_xid, order_id) > ($4::xid8, $5)
    order by changed_xid, order_id limit $6";

#[derive(QueryableByName)]
struct SnapshotState {
    #[diesel(sql_type = Text)]
    snapshot: String,
    #[diesel(sql_type = Bool)]
    is_foreign: bool,
    #[diesel(sql_type = Bool)]
    has_foreign_orders: bool,
}

#[derive(QueryableByName)]
struct ChangedRow {
    #[diesel(embed)]
    order: OrderRow,
    #[diesel(sql_type = Text)]
    changed_xid: String,
}

impl Store {
    /// Returns at most `limit` orders of a user that have changed since `position`.
    ///
    /// # Errors
    /// If the position belongs to another database, or the database fails.
    pub async fn changes_since(
        &self,
        user_id: Uuid,
        position: &Position,
        limit: usize,
    ) -> Result<Changes, Error> {
        let mut conn = self.database.connection().await?;
        let SnapshotState {
            snapshot,
            is_foreign,
            has_foreign_orders,
        } = diesel::sql_query(SNAPSHOT_STATE)
            .bind::<Text, _>(position.newest_snapshot())
            .bind::<SqlUuid, _>(user_id)
            .get_result(&mut *conn)
            .await?;
        if is_foreign {
            return Err(Error::InvalidResumeToken);
        }
        if has_foreign_orders {
            let adopt = diesel::sql_query(ADOPT_FOREIGN_ORDERS).bind::<SqlUuid, _>(user_id);
            adopt.execute(&mut *conn).await?;
            // The next poll finds the adopted orders as normal changes.
            return Ok(Changes {
                orders: Vec::new(),
                position: position.clone(),
                is_complete: false,
            });
        }
        let window = position.window.clone().unwrap_or(Window {
            end_snapshot: snapshot,
            after_xid: "0".to_owned(),
            after_order: Uuid::nil(),
        });
        let rows: Vec<ChangedRow> = diesel::sql_query(CHANGES)
            .bind::<SqlUuid, _>(user_id)
            .bind::<Text, _>(&position.start_snapshot)
            .bind::<Text, _>(&window.end_snapshot)
            .bind::<Text, _>(&window.after_xid)
            .bind::<SqlUuid, _>(window.after_order)
            .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
            .load(&mut *conn)
            .await?;
        let is_complete = rows.len() < limit;
        let window_end = Position::at_snapshot(window.end_snapshot.clone());
        let mut orders = Vec::with_capacity(rows.len());
        for row in rows {
            let position_after = Position {
                start_snapshot: position.start_snapshot.clone(),
                window: Some(Window {
                    end_snapshot: window.end_snapshot.clone(),
                    after_xid: row.changed_xid,
                    after_order: row.order.order_id,
                }),
            };
            orders.push((row.order.try_into()?, position_after));
        }
        // The window is read completely: its end is the same position in a shorter form.
        if is_complete && let Some((_, last)) = orders.last_mut() {
            *last = window_end.clone();
        }
        let last = orders
            .last()
            .map(|(_, position_after)| position_after.clone());
        Ok(Changes {
            position: last.unwrap_or(window_end),
            orders,
            is_complete,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_round_trips_through_text() {
        let inside = Position {
            start_snapshot: "10:20:11,12".to_owned(),
            window: Some(Window {
                end_snapshot: "11:30:".to_owned(),
                after_xid: "25".to_owned(),
                after_order: Uuid::max(),
            }),
        };
        for position in [Position::beginning(), inside] {
            assert_eq!(Position::parse(&position.to_text()), Some(position));
        }
        for bad in ["1:1:;", "1:1:;2:2:;3", "1:1:;2:2:;3;x", "1:1:;2:2:;3;x;y"] {
            assert_eq!(Position::parse(bad), None, "{bad}");
        }
    }
}
