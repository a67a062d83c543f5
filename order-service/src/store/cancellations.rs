//! The SQL of cancellations: one order that a caller names, and all that a deleted user leaves open.

use std::collections::HashMap;

use chrono::{DateTime, SubsecRound as _, Utc};
use diesel::{
    QueryResult, QueryableByName,
    sql_types::{Array, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use outbox::Cause;
use proto::events;
use uuid::Uuid;

use super::{CANCELLED, OrderRow, REQUESTED, USER_DELETED, cached_user, event};
use crate::{
    domain::{CachedUser, CancelReason, Order, State},
    error::Error,
};

const CANCEL: &str = "
    update orders set state = $2, cancel_reason = $3, version = version + 1, update_time = $4,
        changed_xid = pg_current_xact_id()
    where order_id = $1";

/// In the order of their ids, in which everybody locks orders.
const CANCEL_OF_DELETED: &str = "
    with open as (
        select order_id from orders where user_id = any ($1) and state = 'created'
        order by order_id for no key update
    )
    update orders set state = 'cancelled', cancel_reason = 'user_deleted', version = version + 1,
        update_time = greatest(update_time, $2), changed_xid = pg_current_xact_id()
    from open where orders.order_id = open.order_id
    returning orders.order_id, user_id, amount_minor, currency, state, cancel_reason, version,
        create_time, update_time";

/// Taken by orders of users of whom nothing was heard, who have no row to lock, and against them by
/// deletions. One for all users: such orders are few, and done in a moment.
const LOCK_SHARED: &str =
    "select pg_advisory_xact_lock_shared(hashtextextended('orders of unheard users', 0))";
const LOCK: &str = "select pg_advisory_xact_lock(hashtextextended('orders of unheard users', 0))";

const LEFT_OPEN: &str = "
    select distinct user_id from users_cache join orders using (user_id)
    where deleted and state = 'created'";

/// The end of a user, and the event that told of it.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// Who is gone.
    pub user_id: Uuid,
    /// The event, where it had a `ce_id`.
    pub cause: Option<Cause>,
}

#[derive(QueryableByName)]
struct UserRow {
    #[diesel(sql_type = SqlUuid)]
    user_id: Uuid,
}

/// Cancels an order that the transaction has locked; returns its next version.
pub(super) async fn cancel(
    conn: &mut AsyncPgConnection,
    before: Order,
    reason: CancelReason,
) -> QueryResult<Order> {
    let order = Order {
        state: State::Cancelled(reason),
        version: before.version + 1,
        update_time: now().max(before.update_time),
        ..before
    };
    let reason = match reason {
        CancelReason::Requested => REQUESTED,
        CancelReason::UserDeleted => USER_DELETED,
    };
    diesel::sql_query(CANCEL)
        .bind::<SqlUuid, _>(order.order_id)
        .bind::<Text, _>(CANCELLED)
        .bind::<Text, _>(reason)
        .bind::<Timestamptz, _>(order.update_time)
        .execute(conn)
        .await?;
    Ok(order)
}

/// What is known of a user of whom nothing was heard a moment ago. If it is still nothing, no order of
/// such a user that this transaction places is missed by the deletion that may arrive meanwhile.
pub(super) async fn lock_unheard_user(
    conn: &mut AsyncPgConnection,
    user_id: Uuid,
) -> Result<Option<CachedUser>, Error> {
    diesel::sql_query(LOCK_SHARED).execute(conn).await?;
    // Without a lock on the row: a deletion that has it may be waiting for this transaction.
    cached_user(conn, user_id).await
}

/// Cancels the open orders of deleted users, and tells of it in events to `topic`, each with the
/// deletion as its cause. Call it in the transaction that writes the deletions into `users_cache`,
/// behind that: what it does not see then, [`create_order`](super::Store::create_order) rejects.
///
/// # Errors
/// The database's.
pub async fn cancel_orders_of_deleted(
    conn: &mut AsyncPgConnection,
    topic: &str,
    deletions: &[Deletion],
) -> QueryResult<()> {
    diesel::sql_query(LOCK).execute(conn).await?;
    let causes: HashMap<Uuid, Option<Cause>> =
        deletions.iter().map(|d| (d.user_id, d.cause)).collect();
    let user_ids: Vec<Uuid> = causes.keys().copied().collect();
    let rows: Vec<OrderRow> = diesel::sql_query(CANCEL_OF_DELETED)
        .bind::<Array<SqlUuid>, _>(user_ids)
        .bind::<Timestamptz, _>(now())
        .load(conn)
        .await?;
    let cancelled = |row: OrderRow| {
        let order: Order = row.try_into()?;
        let event = event(topic, events::ORDER_CANCELLED, &order)?;
        Ok(match causes.get(&order.user_id) {
            Some(Some(cause)) => event.caused_by(*cause),
            _ => event,
        })
    };
    let events: Result<Vec<_>, Error> = rows.into_iter().map(cancelled).collect();
    let events = events
        .map_err(|err| diesel::result::Error::QueryBuilderError(format!("{err:?}").into()))?;
    outbox::enqueue_all(conn, &events).await
}

/// Cancels the open orders of all users who are deleted as `users_cache` says now.
///
/// # Errors
/// The database's.
pub async fn cancel_what_deleted_users_left_open(
    conn: &mut AsyncPgConnection,
    topic: &str,
) -> QueryResult<()> {
    let rows: Vec<UserRow> = diesel::sql_query(LEFT_OPEN).load(conn).await?;
    let deletions = rows.into_iter().map(|UserRow { user_id }| Deletion {
        user_id,
        cause: None,
    });
    let deletions: Vec<Deletion> = deletions.collect();
    if deletions.is_empty() {
        return Ok(());
    }
    cancel_orders_of_deleted(conn, topic, &deletions).await
}

/// Postgres keeps microseconds: what is answered now is what is read later.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}
