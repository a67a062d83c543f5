//! GetUserOrderSummary counts each order once.

use anyhow::Result;
use chrono::{DateTime, Duration, Utc};
use devstack::Addresses;
use diesel_async::SimpleAsyncConnection as _;
use projection::Projection as _;
use proto::{
    events::{CancelReason, ORDER_CREATED, Order, OrderState, header},
    money::v1::Money,
    user::v1::{GetUserOrderSummaryRequest, GetUserOrderSummaryResponse},
};
use service_kit::database::connect_once;
use tonic::Code;
use user_service::orders_projection::OrdersProjection;
use uuid::Uuid;

use crate::harness::{TestService, assert_rejected};

const DEAD: &str = "select count(*) from dead_letters";
/// The number of processed records, in all partitions.
const SEEN: &str = "select sum(next_offset) from projection_offsets";

/// Creates a new order.
pub(crate) fn order(user_id: &str, amount: &str, currency: &str) -> Result<Order> {
    let now = "2026-01-02T03:04:05.678901Z".parse::<DateTime<Utc>>()?;
    Ok(Order {
        order_id: Uuid::now_v7(),
        user_id: user_id.parse()?,
        amount: amount.to_owned(),
        currency: currency.to_owned(),
        state: OrderState::Created,
        cancel_reason: None,
        version: 1,
        create_time: now,
        update_time: now,
    })
}

/// Returns the cancelled version of an order, a second later.
pub(crate) fn cancelled(order: &Order) -> Order {
    Order {
        state: OrderState::Cancelled,
        cancel_reason: Some(CancelReason::Requested),
        version: order.version + 1,
        update_time: order.update_time + Duration::seconds(1),
        ..order.clone()
    }
}

/// Writes an order event as order-service and the relay do.
async fn publish_order(service: &TestService, order: &Order) -> Result<()> {
    let payload = serde_json::to_string(order)?;
    write(service, &order.order_id.to_string(), &payload).await
}

async fn write(service: &TestService, key: &str, payload: &str) -> Result<()> {
    let (key, payload) = (Some(key.as_bytes()), Some(payload.as_bytes()));
    let headers = [(header::SPEC_VERSION, "1.0"), (header::TYPE, ORDER_CREATED)];
    Addresses::shared()
        .write_record(&service.name, key, payload, &headers)
        .await
}

async fn summary(service: &TestService, user_id: &str) -> Result<GetUserOrderSummaryResponse> {
    let request = GetUserOrderSummaryRequest {
        user_id: user_id.to_owned(),
    };
    let response = service.users().get_user_order_summary(request).await?;
    Ok(response.into_inner())
}

fn money(currency_code: &str, units: i64, nanos: i32) -> Money {
    Money {
        currency_code: currency_code.to_owned(),
        units,
        nanos,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_totalled_exactly_by_user_and_currency() -> Result<()> {
    let service = TestService::start("currencies").await?;
    let (ada, bob) = (service.user("ada").await?, service.user("bob").await?);
    let without_orders = summary(&service, &ada.user_id).await?;
    assert_eq!(without_orders, GetUserOrderSummaryResponse::default());
    let mut orders = Vec::new();
    for (amount, currency) in [
        ("19.90", "EUR"),
        ("0.01", "EUR"),
        ("500", "JPY"),
        ("1.005", "KWD"),
        ("9999999999999.99", "USD"),
    ] {
        orders.push(order(&ada.user_id, amount, currency)?);
    }
    orders.push(order(&bob.user_id, "7.00", "EUR")?);
    // In neither the first nor the last currency.
    orders[2].update_time += Duration::seconds(1);
    for order in &orders {
        publish_order(&service, order).await?;
    }
    service.sql.wait_for(SEEN, 6).await?;
    let found = summary(&service, &ada.user_id).await?;
    assert_eq!((found.order_count, found.cancelled_count), (5, 0));
    assert_eq!(
        found.totals,
        [
            money("EUR", 19, 910_000_000),
            money("JPY", 500, 0),
            money("KWD", 1, 5_000_000),
            money("USD", 9_999_999_999_999, 990_000_000),
        ]
    );
    let as_of_time = proto::timestamp(orders[2].update_time);
    assert_eq!(found.as_of_time, Some(as_of_time));
    let found = summary(&service, &bob.user_id).await?;
    assert_eq!(found.totals, [money("EUR", 7, 0)]);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_order_moves_from_the_total_to_the_cancelled_count() -> Result<()> {
    let service = TestService::start("cancelled").await?;
    let ada = service.user("ada").await?;
    let (kept, dropped) = (
        order(&ada.user_id, "10.00", "EUR")?,
        order(&ada.user_id, "2.50", "EUR")?,
    );
    // Only the cancellation of this order arrives, as after compaction.
    let only_end = cancelled(&order(&ada.user_id, "4.00", "EUR")?);
    publish_order(&service, &kept).await?;
    publish_order(&service, &dropped).await?;
    service.sql.wait_for(SEEN, 2).await?;
    let before = summary(&service, &ada.user_id).await?;
    assert_eq!(before.totals, [money("EUR", 12, 500_000_000)]);
    publish_order(&service, &cancelled(&dropped)).await?;
    publish_order(&service, &only_end).await?;
    service.sql.wait_for(SEEN, 4).await?;
    let after = summary(&service, &ada.user_id).await?;
    assert_eq!((after.order_count, after.cancelled_count), (3, 2));
    assert_eq!(after.totals, [money("EUR", 10, 0)]);
    let as_of_time = proto::timestamp(cancelled(&dropped).update_time);
    assert_eq!(after.as_of_time, Some(as_of_time));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_and_stale_versions_count_once() -> Result<()> {
    let service = TestService::start("replays").await?;
    let ada = service.user("ada").await?;
    let (first, second) = (
        order(&ada.user_id, "10.00", "EUR")?,
        order(&ada.user_id, "2.50", "EUR")?,
    );
    // The records of an order share a partition and are applied in this order, in one batch or in
    // several.
    for _ in 0..2 {
        for record in [&first, &second, &first, &cancelled(&second), &second] {
            publish_order(&service, record).await?;
        }
    }
    service.sql.wait_for(SEEN, 10).await?;
    for stale in [&cancelled(&second), &second, &first] {
        publish_order(&service, stale).await?;
    }
    service.sql.wait_for(SEEN, 13).await?;
    let found = summary(&service, &ada.user_id).await?;
    assert_eq!((found.order_count, found.cancelled_count), (2, 1));
    assert_eq!(found.totals, [money("EUR", 10, 0)]);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_records_are_dead_lettered_and_later_ones_counted() -> Result<()> {
    let service = TestService::start("poison").await?;
    let ada = service.user("ada").await?;
    let good = order(&ada.user_id, "10.00", "EUR")?;
    // All with the valid order's key, to be in its partition and before it.
    let key = good.order_id.to_string();
    let with = |change: fn(&mut Order)| {
        let mut bad = good.clone();
        change(&mut bad);
        serde_json::to_string(&bad)
    };
    let poison = [
        ("payload", String::from("{}")),
        ("payload", String::from("no JSON")),
        ("key", with(|order| order.order_id = Uuid::nil())?),
        ("payload", with(|order| order.amount = "NaN".into())?),
        ("payload", with(|order| order.amount = "-1".into())?),
        ("payload", with(|order| order.amount = "1e9".into())?),
        (
            "payload",
            with(|order| order.amount = "1000000000000001".into())?,
        ),
        (
            "payload",
            with(|order| order.amount = "99999999999999999999.99".into())?,
        ),
        ("payload", with(|order| order.currency = "euro".into())?),
        // JSON allows these, and Postgres does not.
        ("payload", with(|order| order.currency = "EU\0".into())?),
        // serde's error message would contain the value.
        ("payload", r#"{"order_id":"secret\u0000"}"#.to_owned()),
        (
            "payload",
            with(|order| order.update_time -= Duration::days(10_000 * 365))?,
        ),
    ];
    for (_, payload) in &poison {
        write(&service, &key, payload).await?;
    }
    publish_order(&service, &good).await?;
    service.sql.wait_for(SEEN, 13).await?;
    service.sql.wait_for(DEAD, 12).await?;
    let found = summary(&service, &ada.user_id).await?;
    assert_eq!((found.order_count, found.cancelled_count), (1, 0));
    assert_eq!(found.totals, [money("EUR", 10, 0)]);
    let dead_letters = "select error_class, convert_from(payload, 'UTF8') from dead_letters
                   order by record_offset";
    let dead_letters = service.sql.query(dead_letters, &[]).await?;
    let dead_letters: Vec<_> = dead_letters
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(dead_letters, poison);
    let leaked = "select count(*) from dead_letters where error ~ 'secret|NaN|1e9|99999'";
    assert_eq!(service.sql.count(leaked).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_amounts_are_totalled_and_no_total_is_ever_wrong() -> Result<()> {
    let service = TestService::start("largest").await?;
    let ada = service.user("ada").await?;
    for _ in 0..2 {
        publish_order(&service, &order(&ada.user_id, "1000000000000000", "JPY")?).await?;
    }
    service.sql.wait_for(SEEN, 2).await?;
    let found = summary(&service, &ada.user_id).await?;
    assert_eq!(found.totals, [money("JPY", 2_000_000_000_000_000, 0)]);
    // The total after thousands of such orders.
    let beyond = "update user_order_summaries set total = 9223372036854775808";
    service.sql.batch_execute(beyond).await?;
    let request = GetUserOrderSummaryRequest {
        user_id: ada.user_id,
    };
    let rejected = service.users().get_user_order_summary(request).await;
    assert_rejected(rejected, Code::OutOfRange, "TOTAL_OUT_OF_RANGE");
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_and_events_of_other_kinds_change_nothing() -> Result<()> {
    let service = TestService::start("others").await?;
    let ada = service.user("ada").await?;
    let order = order(&ada.user_id, "10.00", "EUR")?;
    let (key, servers) = (order.order_id.to_string(), Addresses::shared());
    publish_order(&service, &order).await?;
    let spec = (header::SPEC_VERSION, "1.0");
    for (payload, headers) in [
        (None, &[spec, (header::TYPE, ORDER_CREATED)][..]),
        // As Kafka tools write it.
        (None, &[]),
        (None, &[(header::SPEC_VERSION, "2.0")]),
        (
            Some(&b"something new"[..]),
            &[spec, (header::TYPE, "parcel_sent")],
        ),
    ] {
        let key = Some(key.as_bytes());
        servers
            .write_record(&service.name, key, payload, headers)
            .await?;
    }
    service.sql.wait_for(SEEN, 5).await?;
    let found = summary(&service, &ada.user_id).await?;
    assert_eq!((found.order_count, found.totals.len()), (1, 1));
    assert_eq!(service.sql.count(DEAD).await?, 0);
    service.stop().await
}

/// After partitions were added to the topic, the versions of an order can be in two partitions, which two
/// replicas read concurrently.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_applied_by_two_replicas_concurrently_is_counted_once() -> Result<()> {
    let service = TestService::start("at_once").await?;
    let ada = service.user("ada").await?;
    let created = order(&ada.user_id, "19.90", "EUR")?;
    let cancelled = cancelled(&created);

    let url = service.database_url.as_str().into();
    let mut one = connect_once(user_service::NAME, &url).await?;
    let mut other = connect_once(user_service::NAME, &url).await?;
    one.batch_execute("begin").await?;
    OrdersProjection.apply(&mut one, &[created]).await?;
    let applying =
        tokio::spawn(async move { OrdersProjection.apply(&mut other, &[cancelled]).await });
    service.wait_for_held_calls(1).await?;
    one.batch_execute("commit").await?;
    applying.await??;

    let found = summary(&service, &ada.user_id).await?;
    assert_eq!((found.order_count, found.cancelled_count), (1, 1));
    assert_eq!(found.totals, []);
    service.stop().await
}
