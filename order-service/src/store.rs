//! The SQL of the gRPC calls. An order and its event are written in one transaction. `users_projection` has the
//! SQL that writes `users_cache`.

mod cancellations;
mod changes;

use std::sync::Arc;

use chrono::{DateTime, SubsecRound as _, Utc};
use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, Queryable, QueryableByName,
    Selectable, SelectableHelper as _,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use proto::events;
use service_kit::{
    CallError, TokenKey, check_etag,
    database::Database,
    idempotency::{MutationContext, Response},
};
use uuid::Uuid;

use crate::{
    domain::{Amount, CachedUser, CancelReason, Cancellation, NewOrder, Order, State},
    error::Error,
    schema::{orders, users_cache},
    subscribers::Subscribers,
};

pub use self::{
    cancellations::{
        UserDeletion, cancel_orders_of_all_deleted_users, cancel_orders_of_deleted_users,
    },
    changes::{Changes, Position},
};

/// How an order's user is validated.
#[derive(Clone, Copy, Debug)]
pub enum UserCheck {
    /// `users_cache` must contain the user.
    RequireCached,
    /// user-service has just confirmed the user; `users_cache` may not contain it yet.
    ConfirmedRemotely,
}

/// The service's database.
#[derive(Clone)]
pub struct Store {
    database: Database,
    topic: String,
    order_subscribers: Arc<Subscribers>,
}

impl Store {
    /// Creates a store that enqueues events for `topic` and notifies `order_subscribers` of changed orders.
    pub fn new(database: Database, topic: String, order_subscribers: Arc<Subscribers>) -> Self {
        Self {
            database,
            topic,
            order_subscribers,
        }
    }

    /// Returns the key of page and resume tokens.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn token_key(&self) -> Result<&TokenKey, Error> {
        Ok(self.database.token_key().await?)
    }

    /// Creates an order.
    ///
    /// # Errors
    /// If the user was deleted, or is unknown and not confirmed by user-service, the request id was used for
    /// a different request, or the database fails.
    pub async fn create_order<R: Response>(
        &self,
        new: NewOrder,
        user_check: UserCheck,
        mutation: MutationContext<Order, R>,
    ) -> Result<R, Error> {
        let (topic, traceparent) = (self.topic.clone(), mutation.traceparent.clone());
        let write = async move |conn: &mut AsyncPgConnection| {
            let user = match (lock_cached_user(conn, new.user_id).await?, user_check) {
                (None, UserCheck::RequireCached) => return Err(Error::UserUnknown(new.user_id)),
                (None, UserCheck::ConfirmedRemotely) => {
                    cancellations::load_user_under_unknown_users_lock(conn, new.user_id).await?
                }
                (user, _) => user,
            };
            if user.is_some_and(|user| user.deleted) {
                return Err(Error::UserDeleted(new.user_id));
            }
            let order = insert_order(conn, &new).await?;
            let event = order_event(&topic, events::ORDER_CREATED, &order)?;
            outbox::enqueue(conn, &event.with_traceparent(traceparent)).await?;
            Ok(order)
        };
        let order_subscribers = Arc::clone(&self.order_subscribers);
        let mutation = mutation.on_commit(move |order| order_subscribers.notify(order.user_id));
        self.database
            .run_idempotent_transaction(mutation, write)
            .await
    }

    /// Returns the stored response of an earlier attempt to create an order, if there is one.
    ///
    /// # Errors
    /// If the request id was used for a different request, or the database fails.
    pub async fn load_stored_response<R: Response>(
        &self,
        mutation: MutationContext<Order, R>,
    ) -> Result<Option<R>, Error> {
        Ok(self.database.load_stored_response(mutation).await?)
    }

    /// Cancels an order.
    ///
    /// # Errors
    /// If the order does not exist, is already cancelled, or does not match the etag, the request id was
    /// used for a different request, or the database fails.
    pub async fn cancel_order<R: Response>(
        &self,
        cancellation: Cancellation,
        mutation: MutationContext<Order, R>,
    ) -> Result<R, Error> {
        let Cancellation { order_id, etag } = cancellation;
        let (topic, traceparent) = (self.topic.clone(), mutation.traceparent.clone());
        let write = async move |conn: &mut AsyncPgConnection| {
            let row: Option<OrderRow> = orders::table
                .find(order_id)
                .select(OrderRow::as_select())
                .for_no_key_update()
                .first(conn)
                .await
                .optional()?;
            let before: Order = row.ok_or(Error::OrderNotFound(order_id))?.try_into()?;
            if before.state != State::Created {
                return Err(Error::OrderCancelled(order_id));
            }
            check_etag(&etag, before.version)?;
            let order = cancellations::cancel_order(conn, before, CancelReason::Requested).await?;
            let event = order_event(&topic, events::ORDER_CANCELLED, &order)?;
            outbox::enqueue(conn, &event.with_traceparent(traceparent)).await?;
            Ok(order)
        };
        let order_subscribers = Arc::clone(&self.order_subscribers);
        let mutation = mutation.on_commit(move |order| order_subscribers.notify(order.user_id));
        self.database
            .run_idempotent_transaction(mutation, write)
            .await
    }

    /// Reads an order.
    ///
    /// # Errors
    /// If it does not exist, or the database fails.
    pub async fn load_order(&self, order_id: Uuid) -> Result<Order, Error> {
        let mut conn = self.database.connection().await?;
        let row: Option<OrderRow> = orders::table
            .find(order_id)
            .select(OrderRow::as_select())
            .first(&mut *conn)
            .await
            .optional()?;
        row.ok_or(Error::OrderNotFound(order_id))?.try_into()
    }

    /// Reads at most `limit` orders after the id `after`, of one user or of all, by id, which is the
    /// order of creation.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list_orders(
        &self,
        user_id: Option<Uuid>,
        after: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Order>, Error> {
        let mut query = orders::table.select(OrderRow::as_select()).into_boxed();
        if let Some(user_id) = user_id {
            query = query.filter(orders::user_id.eq(user_id));
        }
        if let Some(after) = after {
            query = query.filter(orders::order_id.gt(after));
        }
        let mut conn = self.database.connection().await?;
        let rows = query
            .order(orders::order_id)
            .limit(limit)
            .load(&mut *conn)
            .await?;
        rows.into_iter().map(Order::try_from).collect()
    }

    /// Reads a user from `users_cache`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn load_cached_user(&self, user_id: Uuid) -> Result<Option<CachedUser>, Error> {
        load_cached_user(&mut *self.database.connection().await?, user_id).await
    }
}

/// Creates the event with an order's new state.
fn order_event(topic: &str, event_type: &str, order: &Order) -> Result<outbox::Event, Error> {
    let (state, cancel_reason) = match order.state {
        State::Created => (events::OrderState::Created, None),
        State::Cancelled(reason) => (events::OrderState::Cancelled, Some(reason)),
    };
    let state = events::Order {
        order_id: order.order_id,
        user_id: order.user_id,
        amount: order.amount.to_string(),
        currency: order.amount.currency_code().to_owned(),
        state,
        cancel_reason: cancel_reason.map(|reason| match reason {
            CancelReason::Requested => events::CancelReason::Requested,
            CancelReason::UserDeleted => events::CancelReason::UserDeleted,
        }),
        version: order.version,
        create_time: order.create_time,
        update_time: order.update_time,
    };
    outbox::Event::new(topic, order.order_id, event_type, order.version, &state)
        .map_err(|err| CallError::internal(err).into())
}

async fn load_cached_user(
    conn: &mut AsyncPgConnection,
    user_id: Uuid,
) -> Result<Option<CachedUser>, Error> {
    let row: Option<(i64, bool)> = users_cache::table
        .find(user_id)
        .select((users_cache::version, users_cache::deleted))
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(CachedUser::from))
}

/// Reads a cached user and locks it until the transaction ends. A concurrent deletion is either seen
/// here and the order is rejected, or it waits and cancels the order.
async fn lock_cached_user(
    conn: &mut AsyncPgConnection,
    user_id: Uuid,
) -> Result<Option<CachedUser>, Error> {
    let row: Option<(i64, bool)> = users_cache::table
        .find(user_id)
        .select((users_cache::version, users_cache::deleted))
        .for_share()
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(CachedUser::from))
}

async fn insert_order(conn: &mut AsyncPgConnection, new: &NewOrder) -> Result<Order, Error> {
    // Postgres stores microseconds; truncate so that later reads return the same value.
    let now = Utc::now().trunc_subsecs(6);
    let order = Order {
        order_id: Uuid::now_v7(),
        user_id: new.user_id,
        amount: new.amount,
        state: State::Created,
        version: 1,
        create_time: now,
        update_time: now,
    };
    diesel::insert_into(orders::table)
        .values((
            orders::order_id.eq(order.order_id),
            orders::user_id.eq(order.user_id),
            orders::amount_minor.eq(order.amount.minor()),
            orders::currency.eq(order.amount.currency_code()),
            orders::state.eq(CREATED),
            orders::version.eq(order.version),
            orders::create_time.eq(order.create_time),
            orders::update_time.eq(order.update_time),
        ))
        .execute(conn)
        .await?;
    Ok(order)
}

const CREATED: &str = "created";
const CANCELLED: &str = "cancelled";
const REQUESTED: &str = "requested";
const USER_DELETED: &str = "user_deleted";

#[derive(Queryable, QueryableByName, Selectable)]
#[diesel(table_name = orders)]
struct OrderRow {
    order_id: Uuid,
    user_id: Uuid,
    amount_minor: i64,
    currency: String,
    state: String,
    cancel_reason: Option<String>,
    version: i64,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
}

impl TryFrom<OrderRow> for Order {
    type Error = Error;

    fn try_from(row: OrderRow) -> Result<Self, Error> {
        let order_id = row.order_id;
        let invalid = |what| CallError::internal(format!("order {order_id} has an invalid {what}"));
        Ok(Self {
            order_id,
            user_id: row.user_id,
            amount: Amount::from_minor(&row.currency, row.amount_minor)
                .ok_or_else(|| invalid("amount"))?,
            state: match (row.state.as_str(), row.cancel_reason.as_deref()) {
                (CREATED, None) => State::Created,
                (CANCELLED, Some(REQUESTED)) => State::Cancelled(CancelReason::Requested),
                (CANCELLED, Some(USER_DELETED)) => State::Cancelled(CancelReason::UserDeleted),
                _ => return Err(invalid("state").into()),
            },
            version: row.version,
            create_time: row.create_time,
            update_time: row.update_time,
        })
    }
}
