//! CreateOrder for a known user writes one row and one event, or neither.

use anyhow::{Context as _, Result};
use proto::{
    Aggregate, ConsistencyToken,
    events::{self, ORDER_CREATED},
    order::v1::{CreateOrderRequest, GetOrderRequest, ListOrdersRequest, OrderState},
};
use tonic::{Code, Request};

use crate::harness::{EVENTS, ORDERS, ORDERS_TOPIC, TestService, assert_rejected, money, request};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_order_writes_one_row_and_one_event_in_one_transaction() -> Result<()> {
    let service = TestService::start("create").await?;
    let user = service.known_user().await?;
    let mut request = Request::new(request(user.user_id));
    let traceparent = TRACEPARENT.parse()?;
    request.metadata_mut().insert("traceparent", traceparent);
    let response = service.orders().create_order(request).await?.into_inner();
    let order = response.order.context("a response without an order")?;
    assert_eq!(order.user_id, user.user_id.to_string());
    assert_eq!(order.amount, Some(money("EUR", 19, 900_000_000)));
    assert_eq!((order.state(), order.version), (OrderState::Created, 1));
    let token = ConsistencyToken {
        aggregate: Aggregate::Order,
        id: order.order_id.parse()?,
        version: 1,
    };
    assert_eq!(response.consistency_token, token.encode());

    // Each of these queries fails unless there is exactly one row.
    let row = "select order_id::text, user_id::text, currency, state, xmin::text, amount_minor,
                   version
               from orders";
    let row = service.sql.query_one(row, &[]).await?;
    let text = |column| row.get::<_, &str>(column);
    assert_eq!(
        [0, 1, 2, 3].map(text),
        [&*order.order_id, &*order.user_id, "EUR", "created"]
    );
    assert_eq!([5, 6].map(|column| row.get::<_, i64>(column)), [1990, 1]);
    let event = "select topic, key, event_type, traceparent, xid::text, aggregate_version, payload
                 from outbox";
    let event = service.sql.query_one(event, &[]).await?;
    assert_eq!(
        [0, 1, 2, 3, 4].map(|column| event.get::<_, &str>(column)),
        [
            ORDERS_TOPIC,
            &order.order_id,
            ORDER_CREATED,
            TRACEPARENT,
            text(4)
        ]
    );
    assert_eq!(event.get::<_, i64>(5), 1);
    let state: events::Order = serde_json::from_slice(event.get(6))?;
    assert_eq!(Some(proto::timestamp(state.create_time)), order.create_time);
    assert_eq!(Some(proto::timestamp(state.update_time)), order.update_time);
    let expected = events::Order {
        order_id: order.order_id.parse()?,
        user_id: user.user_id,
        amount: "19.90".into(),
        currency: "EUR".into(),
        state: events::OrderState::Created,
        version: 1,
        ..state.clone()
    };
    assert_eq!(state, expected);

    // Later reads return the same order, to the microsecond.
    let id = GetOrderRequest {
        order_id: order.order_id.clone(),
    };
    let read = service.orders().get_order(id).await?.into_inner().order;
    assert_eq!(read, Some(order));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn amounts_are_stored_and_returned_exactly() -> Result<()> {
    let service = TestService::start("amounts").await?;
    let user = service.known_user().await?;
    let cases = [
        (money("EUR", 19, 900_000_000), 1990_i64, "19.90"),
        (money("EUR", 0, 10_000_000), 1, "0.01"),
        (money("JPY", 500, 0), 500, "500"),
        (money("KWD", 1, 5_000_000), 1005, "1.005"),
        (
            money("USD", 9_999_999_999_999, 990_000_000),
            999_999_999_999_999,
            "9999999999999.99",
        ),
    ];
    for (amount, minor, text) in &cases {
        let request = CreateOrderRequest {
            amount: Some(amount.clone()),
            ..request(user.user_id)
        };
        let order = service.create(request).await?.order.context("no order")?;
        assert_eq!(order.amount.as_ref(), Some(amount));
        let kept = "select amount_minor, payload from orders join outbox on key = order_id::text
                    where key = $1";
        let kept = service.sql.query_one(kept, &[&order.order_id]).await?;
        let event: events::Order = serde_json::from_slice(kept.get(1))?;
        assert_eq!(
            (kept.get(0), &*event.amount, event.currency),
            (*minor, *text, amount.currency_code.clone())
        );
    }
    let listed = ListOrdersRequest::default();
    let listed = service.orders().list_orders(listed).await?.into_inner();
    let amounts: Vec<_> = listed
        .orders
        .into_iter()
        .map(|order| order.amount)
        .collect();
    assert_eq!(amounts, cases.map(|(amount, _, _)| Some(amount)));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_invalid_field_is_reported_and_nothing_is_written() -> Result<()> {
    let service = TestService::start("fields").await?;
    let all_bad = CreateOrderRequest {
        user_id: "1".into(),
        amount: Some(money("Euro", -1, 1)),
        consistency_token: "1".into(),
        request_id: "1".into(),
    };
    let no_amount = CreateOrderRequest {
        amount: None,
        ..all_bad.clone()
    };
    let amount_fields = ["amount.currency_code", "amount.units", "amount.nanos"];
    for (bad, amount_fields) in [(all_bad, &amount_fields[..]), (no_amount, &["amount"])] {
        let details = assert_rejected(
            service.create(bad).await,
            Code::InvalidArgument,
            "VALIDATION_FAILED",
        );
        let violations = details.bad_request().context("no BadRequest")?;
        let violations = &violations.field_violations;
        let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        let others = ["consistency_token", "request_id"];
        assert_eq!(fields, [&["user_id"], amount_fields, &others].concat());
        assert!(violations.iter().all(|v| !v.description.is_empty()));
    }
    assert_eq!(service.sql.count(ORDERS).await?, 0);
    assert_eq!(service.sql.count(EVENTS).await?, 0);
    service.stop().await
}
