//! All SQL of the service. An order and the event that tells of it are written in one transaction.

use chrono::{DateTime, SubsecRound as _, Utc};
use diesel::{
    ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, Queryable, Selectable,
    SelectableHelper as _,
};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use proto::events;
use service_kit::{
    CallError,
    database::Pool,
    idempotency::{Answer, WriteContext},
};
use uuid::Uuid;

use crate::{
    domain::{Amount, CachedUser, NewOrder, Order, State},
    error::Error,
    schema::{orders, users_cache},
};

/// The service's database.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    topic: String,
}

impl Store {
    /// The store behind `pool`; events go to `topic`.
    pub fn new(pool: Pool, topic: String) -> Self {
        Self { pool, topic }
    }

    /// Places an order. `respond` encodes the response, which is kept for repeats.
    ///
    /// # Errors
    /// If the user is not known here or was deleted, the request id was used for something else, or
    /// the database fails.
    pub async fn create_order(
        &self,
        new: NewOrder,
        context: WriteContext,
        respond: fn(&Order) -> Vec<u8>,
    ) -> Result<Answer<Order>, Error> {
        let mut conn = self.pool.get().await?;
        conn.transaction(async |conn| {
            if let Some(response) = context.earlier_response(conn).await? {
                return Ok(Answer::Repeated(response));
            }
            match cached_user(conn, new.user_id).await? {
                None => return Err(Error::UserUnknown(new.user_id)),
                Some(user) if user.deleted => return Err(Error::UserDeleted(new.user_id)),
                Some(_) => {}
            }
            let order = insert(conn, &new).await?;
            let event = self.event(events::ORDER_CREATED, &order)?;
            outbox::enqueue(conn, &event.with_traceparent(context.traceparent.clone())).await?;
            context.keep_response(conn, || respond(&order)).await?;
            Ok(Answer::Done(order))
        })
        .await
    }

    /// Reads an order.
    ///
    /// # Errors
    /// If there is none, or the database fails.
    pub async fn order(&self, order_id: Uuid) -> Result<Order, Error> {
        let mut conn = self.pool.get().await?;
        let row: Option<OrderRow> = orders::table
            .find(order_id)
            .select(OrderRow::as_select())
            .first(&mut conn)
            .await
            .optional()?;
        row.ok_or(Error::OrderNotFound(order_id))?.try_into()
    }

    /// Reads at most `limit` orders behind `after`, of one user or of all, in the order of their
    /// ids, which is that of their creation.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn orders(
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
        let mut conn = self.pool.get().await?;
        let rows = query
            .order(orders::order_id)
            .limit(limit)
            .load(&mut conn)
            .await?;
        rows.into_iter().map(Order::try_from).collect()
    }

    /// What this service has heard of a user.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn cached_user(&self, user_id: Uuid) -> Result<Option<CachedUser>, Error> {
        cached_user(&mut *self.pool.get().await?, user_id).await
    }

    /// The event that tells of an order's new state.
    fn event(&self, event_type: &str, order: &Order) -> Result<outbox::Event, Error> {
        let state = events::Order {
            order_id: order.order_id,
            user_id: order.user_id,
            amount: order.amount.to_string(),
            currency: order.amount.currency_code().to_owned(),
            state: match order.state {
                State::Created => events::OrderState::Created,
                State::Cancelled => events::OrderState::Cancelled,
            },
            version: order.version,
            create_time: order.create_time,
            update_time: order.update_time,
        };
        outbox::Event::new(
            &self.topic,
            order.order_id,
            event_type,
            order.version,
            &state,
        )
        .map_err(|err| CallError::bug(err).into())
    }
}

async fn cached_user(
    conn: &mut AsyncPgConnection,
    user_id: Uuid,
) -> Result<Option<CachedUser>, Error> {
    let row: Option<(i64, bool)> = users_cache::table
        .find(user_id)
        .select((users_cache::version, users_cache::deleted))
        .first(conn)
        .await
        .optional()?;
    Ok(row.map(|(version, deleted)| CachedUser { version, deleted }))
}

async fn insert(conn: &mut AsyncPgConnection, new: &NewOrder) -> Result<Order, Error> {
    // Postgres keeps microseconds: what is answered now is what is read later.
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

#[derive(Queryable, Selectable)]
#[diesel(table_name = orders)]
struct OrderRow {
    order_id: Uuid,
    user_id: Uuid,
    amount_minor: i64,
    currency: String,
    state: String,
    version: i64,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
}

impl TryFrom<OrderRow> for Order {
    type Error = Error;

    fn try_from(row: OrderRow) -> Result<Self, Error> {
        let order_id = row.order_id;
        let bad =
            |what| CallError::bug(format!("order {order_id} has a {what} that none can have"));
        Ok(Self {
            order_id,
            user_id: row.user_id,
            amount: Amount::from_minor(&row.currency, row.amount_minor)
                .ok_or_else(|| bad("amount"))?,
            state: match row.state.as_str() {
                CREATED => State::Created,
                CANCELLED => State::Cancelled,
                _ => return Err(bad("state").into()),
            },
            version: row.version,
            create_time: row.create_time,
            update_time: row.update_time,
        })
    }
}
