//! Cancels single orders and the open orders of deleted users.

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

use super::{CANCELLED, OrderRow, REQUESTED, USER_DELETED, load_cached_user, order_event};
use crate::{
    domain::{CachedUser, CancelReason, Order, State},
    error::Error,
};

const CANCEL_ORDER: &str = "
    update orders set state = $2, cancel_reason = $3, version = version + 1, update_time = $4,
        changed_xid = pg_current_xact_id()
    where order_id = $1";

/// Locks orders by id, the order that all transactions use, to avoid deadlocks.
const CANCEL_ORDERS_OF_USERS: &str = "
    with open as (
        select order_id from orders where user_id = any ($1) and state = 'created'
        order by order_id for no key update
    )
    update orders set state = 'cancelled', cancel_reason = 'user_deleted', version = version + 1,
        update_time = greatest(update_time, $2), changed_xid = pg_current_xact_id()
    from open where orders.order_id = open.order_id
    returning orders.order_id, user_id, amount_minor, currency, state, cancel_reason, version,
        create_time, update_time";

/// An advisory lock between orders of unknown users, which have no row to lock, and deletions. One lock for
/// all users, because such orders are rare and short. The lock's name must stay the same: during an upgrade
/// old and new replicas lock against each other.
const LOCK_UNKNOWN_USERS_SHARED: &str =
    "select pg_advisory_xact_lock_shared(hashtextextended('orders of unheard users', 0))";
const LOCK_UNKNOWN_USERS: &str =
    "select pg_advisory_xact_lock(hashtextextended('orders of unheard users', 0))";

const DELETED_USERS_WITH_OPEN_ORDERS: &str = "
    select distinct user_id from users_cache join orders using (user_id)
    where deleted and state = 'created'";

/// A user deletion and the event that reported it.
#[derive(Clone, Debug)]
pub struct UserDeletion {
    pub user_id: Uuid,
    /// The event, if it had a `ce_id`.
    pub cause: Option<Cause>,
}

#[derive(QueryableByName)]
struct UserRow {
    #[diesel(sql_type = SqlUuid)]
    user_id: Uuid,
}

/// Cancels an order that the transaction has locked, and returns its new version.
pub(super) async fn cancel_order(
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
    diesel::sql_query(CANCEL_ORDER)
        .bind::<SqlUuid, _>(order.order_id)
        .bind::<Text, _>(CANCELLED)
        .bind::<Text, _>(reason)
        .bind::<Timestamptz, _>(order.update_time)
        .execute(conn)
        .await?;
    Ok(order)
}

/// Takes the lock shared by all orders of unknown users, and then reads the user again. If the user is
/// still unknown, a concurrent deletion waits for this transaction, and then cancels the order that it creates.
pub(super) async fn load_user_under_unknown_users_lock(
    conn: &mut AsyncPgConnection,
    user_id: Uuid,
) -> Result<Option<CachedUser>, Error> {
    diesel::sql_query(LOCK_UNKNOWN_USERS_SHARED)
        .execute(conn)
        .await?;
    // Without a row lock: a deletion that holds it may be waiting for this transaction.
    load_cached_user(conn, user_id).await
}

/// Cancels the open orders of deleted users, and enqueues an event for each with the deletion as its
/// cause. Call it in the transaction that wrote the deletions to `users_cache`, after that write:
/// [`create_order`](super::Store::create_order) rejects orders that this call does not see.
///
/// # Errors
/// If the database fails.
pub async fn cancel_orders_of_deleted_users(
    conn: &mut AsyncPgConnection,
    topic: &str,
    deletions: &[UserDeletion],
) -> QueryResult<()> {
    diesel::sql_query(LOCK_UNKNOWN_USERS).execute(conn).await?;
    let causes: HashMap<Uuid, Option<Cause>> =
        deletions.iter().map(|d| (d.user_id, d.cause)).collect();
    let user_ids: Vec<Uuid> = causes.keys().copied().collect();
    let rows: Vec<OrderRow> = diesel::sql_query(CANCEL_ORDERS_OF_USERS)
        .bind::<Array<SqlUuid>, _>(user_ids)
        .bind::<Timestamptz, _>(now())
        .load(conn)
        .await?;
    let cancellation_event = |row: OrderRow| {
        let order: Order = row.try_into()?;
        let event = order_event(topic, events::ORDER_CANCELLED, &order)?;
        Ok(match causes.get(&order.user_id) {
            Some(Some(cause)) => event.caused_by(*cause),
            _ => event,
        })
    };
    let events: Result<Vec<_>, Error> = rows.into_iter().map(cancellation_event).collect();
    let events = events
        .map_err(|err| diesel::result::Error::QueryBuilderError(format!("{err:?}").into()))?;
    outbox::enqueue_all(conn, &events).await
}

/// Cancels the open orders of all users that are deleted in `users_cache`.
///
/// # Errors
/// If the database fails.
pub async fn cancel_orders_of_all_deleted_users(
    conn: &mut AsyncPgConnection,
    topic: &str,
) -> QueryResult<()> {
    let rows: Vec<UserRow> = diesel::sql_query(DELETED_USERS_WITH_OPEN_ORDERS)
        .load(conn)
        .await?;
    let deletions = rows.into_iter().map(|UserRow { user_id }| UserDeletion {
        user_id,
        cause: None,
    });
    let deletions: Vec<UserDeletion> = deletions.collect();
    if deletions.is_empty() {
        return Ok(());
    }
    cancel_orders_of_deleted_users(conn, topic, &deletions).await
}

/// Returns the current time in microseconds, the precision of Postgres.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}
