//! CancelOrder writes one change and one event, or neither, and only once.

use anyhow::{Context as _, Result};
use futures_util::future::{join_all, try_join_all};
use proto::{
    Aggregate, ConsistencyToken,
    events::{self, ORDER_CANCELLED},
    order::v1::{CancelOrderRequest, CancelReason, GetOrderRequest, Order, OrderState},
};
use service_kit::CONSISTENCY_TOKEN;
use tonic::{Code, Request};
use uuid::Uuid;

use crate::harness::{
    CANCELLATIONS, EVENTS, ORDERS_TOPIC, TestService, assert_rejected, cancellation, request,
};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Reads the current order.
async fn read(service: &TestService, order: &Order) -> Result<Option<Order>> {
    let id = GetOrderRequest {
        order_id: order.order_id.clone(),
    };
    Ok(service.orders().get_order(id).await?.into_inner().order)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_writes_one_change_and_one_event_in_one_transaction() -> Result<()> {
    let service = TestService::start("cancel").await?;
    let user = service.known_user().await?;
    let placed = service.order(&user).await?;
    let mut request = Request::new(cancellation(&placed));
    let traceparent = TRACEPARENT.parse()?;
    request.metadata_mut().insert("traceparent", traceparent);
    let response = service.orders().cancel_order(request).await?;
    let carried = response.metadata().get(CONSISTENCY_TOKEN).cloned();
    let response = response.into_inner();
    let order = response.order.context("a response without an order")?;
    let expected = Order {
        state: OrderState::Cancelled.into(),
        cancel_reason: CancelReason::Requested.into(),
        version: 2,
        etag: order.etag.clone(),
        update_time: order.update_time,
        ..placed.clone()
    };
    assert_eq!(order, expected);
    assert_ne!(order.etag, placed.etag);
    let token = ConsistencyToken {
        aggregate: Aggregate::Order,
        id: order.order_id.parse()?,
        version: 2,
    };
    assert_eq!(response.consistency_token, token.encode());
    // For interceptors.
    let carried = carried.context("no token in the metadata")?;
    assert_eq!(carried.to_str()?, response.consistency_token);
    assert_eq!(read(&service, &order).await?.as_ref(), Some(&order));

    // Each of these queries fails unless there is exactly one row.
    let row =
        "select state, cancel_reason, xmin::text, changed_xid::xid::text, version from orders";
    let row = service.sql.query_one(row, &[]).await?;
    let text = |column| row.get::<_, &str>(column);
    assert_eq!([0, 1].map(text), ["cancelled", "requested"]);
    assert_eq!(text(2), text(3));
    assert_eq!(row.get::<_, i64>(4), 2);
    let event = "select topic, key, event_type, traceparent, xid::xid::text, headers::text, payload
                 from outbox where aggregate_version = 2";
    let event = service.sql.query_one(event, &[]).await?;
    assert_eq!(
        [0, 1, 2, 3, 4].map(|column| event.get::<_, &str>(column)),
        [
            ORDERS_TOPIC,
            &order.order_id,
            ORDER_CANCELLED,
            TRACEPARENT,
            text(2)
        ]
    );
    // Caused by a call and not by an event.
    assert_eq!(event.get::<_, Option<&str>>(5), None);
    let state: events::Order = serde_json::from_slice(event.get(6))?;
    assert_eq!(Some(proto::timestamp(state.create_time)), order.create_time);
    assert_eq!(Some(proto::timestamp(state.update_time)), order.update_time);
    let expected = events::Order {
        order_id: order.order_id.parse()?,
        user_id: user.user_id,
        amount: "19.90".into(),
        currency: "EUR".into(),
        state: events::OrderState::Cancelled,
        cancel_reason: Some(events::CancelReason::Requested),
        version: 2,
        ..state.clone()
    };
    assert_eq!(state, expected);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_order_cannot_be_cancelled_again() -> Result<()> {
    let service = TestService::start("again").await?;
    let user = service.known_user().await?;
    let placed = service.order(&user).await?;
    let cancelled = service.cancel(cancellation(&placed)).await?.order;
    let cancelled = cancelled.context("a response without an order")?;
    // With any etag.
    for etag in ["", &placed.etag, &cancelled.etag] {
        let again = CancelOrderRequest {
            etag: etag.to_owned(),
            ..cancellation(&placed)
        };
        let rejected = service.cancel(again).await;
        let details = assert_rejected(rejected, Code::FailedPrecondition, "ORDER_CANCELLED");
        let conditions = details.precondition_failure().context("no condition")?;
        let condition = &conditions.violations[0];
        assert_eq!(condition.r#type, "ORDER_OPEN");
        assert_eq!(condition.subject, format!("orders/{}", placed.order_id));
        assert!(details.retry_info().is_none());
    }
    assert_eq!(read(&service, &placed).await?, Some(cancelled));
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_cancelled_only_if_the_etag_matches() -> Result<()> {
    let service = TestService::start("etag").await?;
    let user = service.known_user().await?;
    let seen = service.order(&user).await?;
    // A concurrent change that does not cancel the order.
    let change = "update orders set version = version + 1";
    service.sql.execute(change, &[]).await?;
    let now = read(&service, &seen).await?.context("an order")?;
    for etag in [&*seen.etag, "v3", "garbage", " "] {
        let stale = CancelOrderRequest {
            etag: etag.to_owned(),
            ..cancellation(&seen)
        };
        assert_rejected(service.cancel(stale).await, Code::Aborted, "ETAG_MISMATCH");
    }
    assert_eq!(read(&service, &seen).await?.as_ref(), Some(&now));
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 0);
    let fresh = CancelOrderRequest {
        etag: now.etag,
        ..cancellation(&seen)
    };
    service.cancel(fresh).await?;
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_or_invalid_order_id_is_reported() -> Result<()> {
    let service = TestService::start("meant").await?;
    let order_id = Uuid::now_v7().to_string();
    let unknown = CancelOrderRequest {
        order_id: order_id.clone(),
        ..CancelOrderRequest::default()
    };
    let rejected = service.cancel(unknown).await;
    let details = assert_rejected(rejected, Code::NotFound, "ORDER_NOT_FOUND");
    let resource = details.resource_info().context("no ResourceInfo")?;
    assert_eq!(resource.resource_type, "order.v1.Order");
    assert_eq!(resource.resource_name, order_id);
    let all_bad = CancelOrderRequest {
        order_id: "1".into(),
        etag: "1".into(),
        request_id: "1".into(),
    };
    let rejected = service.cancel(all_bad).await;
    let details = assert_rejected(rejected, Code::InvalidArgument, "VALIDATION_FAILED");
    let violations = details.bad_request().context("no BadRequest")?;
    let violations = &violations.field_violations;
    let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["order_id", "request_id"]);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_cancellation_gets_the_first_response_in_any_spelling() -> Result<()> {
    let service = TestService::start("repeat").await?;
    let user = service.known_user().await?;
    // Request ids are scoped to a method.
    let request_id = Uuid::new_v4().to_string();
    let mut create = request(user.user_id);
    create.request_id.clone_from(&request_id);
    let placed = service.create(create).await?.order.context("no order")?;
    let first = CancelOrderRequest {
        etag: placed.etag.clone(),
        request_id,
        ..cancellation(&placed)
    };
    let cancelled = service.cancel(first.clone()).await?;
    assert_eq!(service.cancel(first.clone()).await?, cancelled);
    let spelled = CancelOrderRequest {
        order_id: first.order_id.to_uppercase(),
        request_id: first.request_id.to_uppercase(),
        ..first.clone()
    };
    let response = service.orders().cancel_order(spelled).await?;
    let carried = response.metadata().get(CONSISTENCY_TOKEN).cloned();
    let carried = carried.context("no token in the metadata")?;
    assert_eq!(carried.to_str()?, cancelled.consistency_token);
    assert_eq!(response.into_inner(), cancelled);
    assert_eq!(service.sql.count(EVENTS).await?, 2);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_cannot_be_reused_to_cancel_another_order() -> Result<()> {
    let service = TestService::start("reused").await?;
    let user = service.known_user().await?;
    let (placed, other) = (service.order(&user).await?, service.order(&user).await?);
    let first = CancelOrderRequest {
        request_id: Uuid::new_v4().to_string(),
        ..cancellation(&placed)
    };
    service.cancel(first.clone()).await?;
    let other_order = CancelOrderRequest {
        order_id: other.order_id.clone(),
        ..first.clone()
    };
    let other_etag = CancelOrderRequest {
        etag: placed.etag,
        ..first
    };
    for reused in [other_order, other_etag] {
        assert_rejected(
            service.cancel(reused).await,
            Code::InvalidArgument,
            "REQUEST_ID_REUSED",
        );
    }
    assert_eq!(read(&service, &other).await?, Some(other));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_many_concurrent_cancellations_succeeds() -> Result<()> {
    let service = TestService::start("at_once").await?;
    let user = service.known_user().await?;
    let placed = service.order(&user).await?;
    let seen = CancelOrderRequest {
        etag: placed.etag.clone(),
        ..cancellation(&placed)
    };
    let answers = join_all((0..32).map(|_| service.cancel_at_last(&seen))).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 31));
    for rejected in lost {
        assert_rejected(rejected, Code::FailedPrecondition, "ORDER_CANCELLED");
    }
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 1);
    let order = read(&service, &placed).await?.context("an order")?;
    assert_eq!(order.version, 2);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_retries_of_a_cancellation_get_the_same_response() -> Result<()> {
    let service = TestService::start("repeats").await?;
    let user = service.known_user().await?;
    let placed = service.order(&user).await?;
    let request = CancelOrderRequest {
        request_id: Uuid::new_v4().to_string(),
        ..cancellation(&placed)
    };
    let answers = try_join_all((0..16).map(|_| service.cancel_at_last(&request))).await?;
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 1);
    service.stop().await
}
