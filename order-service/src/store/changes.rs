//! The SQL of WatchOrders: which of a user's orders have changed since somebody last looked.
//!
//! Neither times nor ids order commits: a transaction that was begun earlier can be committed later,
//! and whoever reads "everything behind the newest that I know" then misses it. So a look remembers
//! the snapshot in which it has seen everything, and the next one reads what that did not show:
//! outbox-relay's way of reading (docs/adr/0001).

use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bool, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl as _;
use uuid::Uuid;

use super::{OrderRow, Store};
use crate::{domain::Order, error::Error};

/// How far a user's orders were followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Everything visible in this snapshot was seen.
    seen: String,
    /// What is being read: up to which snapshot, and behind which row.
    window: Option<Window>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    upto: String,
    after_xid: String,
    after_order: Uuid,
}

impl Position {
    /// Nothing was seen yet.
    pub fn beginning() -> Self {
        Self::seen("1:1:".to_owned())
    }

    fn seen(snapshot: String) -> Self {
        Self {
            seen: snapshot,
            window: None,
        }
    }

    /// The newest snapshot that it knows.
    fn newest(&self) -> &str {
        let window = self.window.as_ref();
        window.map_or(&self.seen, |window| &window.upto)
    }

    /// The position as text; it goes into tokens, which have to be signed: it is not checked again.
    pub fn to_text(&self) -> String {
        match &self.window {
            None => self.seen.clone(),
            Some(Window {
                upto,
                after_xid,
                after_order,
            }) => format!("{};{upto};{after_xid};{after_order}", self.seen),
        }
    }

    /// Reads what [`to_text`](Self::to_text) wrote; none of another text.
    pub fn from_text(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(';').collect();
        let window = match parts[1..] {
            [] => None,
            [upto, after_xid, after_order] => Some(Window {
                upto: upto.to_owned(),
                after_xid: after_xid.to_owned(),
                after_order: after_order.parse().ok()?,
            }),
            _ => return None,
        };
        Some(Self {
            seen: parts[0].to_owned(),
            window,
        })
    }
}

/// What has changed since a look.
#[derive(Debug)]
pub struct Changes {
    /// The orders, each with the position behind it.
    pub orders: Vec<(Order, Position)>,
    /// The position behind all of them.
    pub position: Position,
    /// Whether that is all there is for now.
    pub is_all: bool,
}

/// The present snapshot, and whether a position of the past can't be from this database's past: it
/// was restored from a dump, and its transactions are counted anew. So are orders from before it,
/// which seem to be written by transactions that are still to come, and are in no snapshot.
const LOOK: &str = "select pg_current_snapshot()::text as snapshot,
    pg_snapshot_xmax($1::pg_snapshot) > pg_snapshot_xmax(pg_current_snapshot()) as is_foreign,
    exists (select from orders where user_id = $2
        and changed_xid >= pg_snapshot_xmax(pg_current_snapshot())) as has_foreign_orders";

/// Makes such orders this database's own, in the order in which everybody locks orders.
const ADOPT: &str = "
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
struct Look {
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
    /// The orders of a user that have changed since `position`, at most `limit`.
    ///
    /// # Errors
    /// If the position is none of this database, or the database fails.
    pub async fn changes(
        &self,
        user_id: Uuid,
        position: &Position,
        limit: usize,
    ) -> Result<Changes, Error> {
        let mut conn = self.database.get().await?;
        let Look {
            snapshot,
            is_foreign,
            has_foreign_orders,
        } = diesel::sql_query(LOOK)
            .bind::<Text, _>(position.newest())
            .bind::<SqlUuid, _>(user_id)
            .get_result(&mut *conn)
            .await?;
        if is_foreign {
            return Err(Error::BadResumeToken);
        }
        if has_foreign_orders {
            let adopt = diesel::sql_query(ADOPT).bind::<SqlUuid, _>(user_id);
            adopt.execute(&mut *conn).await?;
            // From here on they are changes like all others: the next look finds them.
            return Ok(Changes {
                orders: Vec::new(),
                position: position.clone(),
                is_all: false,
            });
        }
        let window = position.window.clone().unwrap_or(Window {
            upto: snapshot,
            after_xid: "0".to_owned(),
            after_order: Uuid::nil(),
        });
        let rows: Vec<ChangedRow> = diesel::sql_query(CHANGES)
            .bind::<SqlUuid, _>(user_id)
            .bind::<Text, _>(&position.seen)
            .bind::<Text, _>(&window.upto)
            .bind::<Text, _>(&window.after_xid)
            .bind::<SqlUuid, _>(window.after_order)
            .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
            .load(&mut *conn)
            .await?;
        let is_all = rows.len() < limit;
        let behind_all = Position::seen(window.upto.clone());
        let mut orders = Vec::with_capacity(rows.len());
        for row in rows {
            let behind = Position {
                seen: position.seen.clone(),
                window: Some(Window {
                    upto: window.upto.clone(),
                    after_xid: row.changed_xid,
                    after_order: row.order.order_id,
                }),
            };
            orders.push((row.order.try_into()?, behind));
        }
        // Behind the last row of a window lies what is behind the window; that is shorter to say.
        if is_all && let Some((_, last)) = orders.last_mut() {
            *last = behind_all.clone();
        }
        let last = orders.last().map(|(_, behind)| behind.clone());
        Ok(Changes {
            position: last.unwrap_or(behind_all),
            orders,
            is_all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let inside = Position {
            seen: "10:20:11,12".to_owned(),
            window: Some(Window {
                upto: "11:30:".to_owned(),
                after_xid: "25".to_owned(),
                after_order: Uuid::max(),
            }),
        };
        for position in [Position::beginning(), inside] {
            assert_eq!(Position::from_text(&position.to_text()), Some(position));
        }
        for bad in ["1:1:;", "1:1:;2:2:;3", "1:1:;2:2:;3;x", "1:1:;2:2:;3;x;y"] {
            assert_eq!(Position::from_text(bad), None, "{bad}");
        }
    }
}
