//! Applies order events: keeps the latest version of each order, and summaries by user.

use chrono::Datelike as _;
use diesel::{QueryResult, sql_types::*};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use projection::{Configurable, Poison, Projection, Rebuildable, Record, TopicOption};
use proto::events::{self, Order, OrderState};

/// The projection into `user_orders` and `user_order_summaries`.
#[derive(Debug)]
pub struct OrdersProjection;

impl Configurable for OrdersProjection {
    const CONSUMER_GROUP: &'static str = "user_service_group";
    const TOPIC: TopicOption = TopicOption {
        option: "orders-topic",
        variable: "ORDERS_TOPIC",
        default: events::ORDERS_TOPIC,
        help: "Consume order events from this topic",
    };
    type Options = ();

    fn from_options((): ()) -> Self {
        Self
    }
}

/// Keeps the latest version of each order, and adds the difference to the previous version to the
/// summaries, in one statement. The previous version comes from the locked row and not from a snapshot,
/// because another replica may have applied an earlier version from another partition. Rows are
/// changed in key order to avoid deadlocks.
const APPLY: &str = "
    with incoming as (
        select distinct on (order_id) * from unnest(
            $1::uuid[], $2::uuid[], $3::text[]::numeric[], $4::text[], $5::boolean[],
            $6::bigint[], $7::timestamptz[]
        ) as i (order_id, user_id, amount, currency, cancelled, version, update_time)
        order by order_id, version desc
    ), applied as (
        insert into user_orders
            (order_id, user_id, amount, currency, cancelled, version, update_time)
        select order_id, user_id, amount, currency, cancelled, version, update_time
        from incoming order by order_id
        on conflict on constraint user_orders_pkey do update set
            amount = excluded.amount, cancelled = excluded.cancelled,
            version = excluded.version, update_time = excluded.update_time,
            amount_before = user_orders.amount, cancelled_before = user_orders.cancelled
        where excluded.version > user_orders.version
        returning *
    ), difference as (
        select user_id, currency,
            count(*) filter (where cancelled_before is null) as orders,
            sum(cancelled::int - coalesce(cancelled_before::int, 0)) as cancelled,
            sum(case when cancelled then 0 else amount end
                - case when coalesce(cancelled_before, true) then 0 else amount_before end)
                as total,
            max(update_time) as as_of_time
        from applied group by user_id, currency
    )
    insert into user_order_summaries as s
        (user_id, currency, order_count, cancelled_count, total, as_of_time)
    select user_id, currency, orders, cancelled, total, as_of_time
    from difference order by user_id, currency
    on conflict on constraint user_order_summaries_pkey do update set
        order_count = s.order_count + excluded.order_count,
        cancelled_count = s.cancelled_count + excluded.cancelled_count,
        total = s.total + excluded.total,
        as_of_time = greatest(s.as_of_time, excluded.as_of_time)";

impl Rebuildable for OrdersProjection {
    const TABLES: &'static [&'static str] = &["user_orders", "user_order_summaries"];
}

impl Projection for OrdersProjection {
    type Change = Order;

    fn decode(&self, record: &Record<'_>) -> Result<Option<Order>, Poison> {
        let event_type = record.event_type()?;
        if !events::ORDER_TYPES.contains(&event_type) {
            return Ok(None);
        }
        let order: Order = record.payload_json()?;
        if record.key_text()? != order.order_id.to_string() {
            return Err(Poison::new("key", "must be the payload's order_id"));
        }
        if order.version < 1 {
            return Err(Poison::new("payload", "version must be positive"));
        }
        if !is_amount(&order.amount) {
            let reason = "amount must be a decimal number of at most 10^15";
            return Err(Poison::new("payload", reason));
        }
        // The table's constraint would reject the whole batch, which is then retried in parts.
        if order.currency.len() != 3 || !order.currency.bytes().all(|b| b.is_ascii_uppercase()) {
            return Err(Poison::new(
                "payload",
                "currency must be three uppercase letters",
            ));
        }
        // JSON allows other years and Postgres does not: without this check the batch would be retried forever.
        if !(1..=9999).contains(&order.update_time.year()) {
            let reason = "update_time must be in the years 1 to 9999";
            return Err(Poison::new("payload", reason));
        }
        Ok(Some(order))
    }

    /// Skips tombstones. An order has no end: order-service keeps it and publishes no tombstone, and a summary
    /// counts all orders that were placed. A tombstone from elsewhere only removes records from the topic.
    fn decode_tombstone(&self, _: &Record<'_>) -> Option<Order> {
        None
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, orders: &[Order]) -> QueryResult<()> {
        fn column<'a, T>(orders: &'a [Order], of: impl Fn(&'a Order) -> T) -> Vec<T> {
            orders.iter().map(of).collect()
        }
        diesel::sql_query(APPLY)
            .bind::<Array<Uuid>, _>(column(orders, |o| o.order_id))
            .bind::<Array<Uuid>, _>(column(orders, |o| o.user_id))
            .bind::<Array<Text>, _>(column(orders, |o| o.amount.as_str()))
            .bind::<Array<Text>, _>(column(orders, |o| o.currency.as_str()))
            .bind::<Array<Bool>, _>(column(orders, |o| o.state == OrderState::Cancelled))
            .bind::<Array<BigInt>, _>(column(orders, |o| o.version))
            .bind::<Array<Timestamptz>, _>(column(orders, |o| o.update_time))
            .execute(conn)
            .await?;
        Ok(())
    }
}

/// The largest amount of an order: order-service allows 10^15 minor units, which are whole units in some
/// currencies.
const MAX_UNITS: u64 = 1_000_000_000_000_000;

/// Accepts digits with at most nine decimal places, up to the limit, and not "NaN" or "1e9". A larger
/// amount could make a total overflow.
fn is_amount(text: &str) -> bool {
    let (units, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str, most| {
        (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
    };
    digits(units, 16)
        && digits(decimals, 9)
        && units.parse().is_ok_and(|units: u64| units <= MAX_UNITS)
}
