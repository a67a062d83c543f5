//! Requests with a `request_id` are idempotent.

use anyhow::Result;
use futures_util::future::try_join_all;
use proto::{Aggregate, ConsistencyToken, order::v1::CreateOrderRequest};
use tonic::Code;
use uuid::Uuid;

use crate::harness::{
    EVENTS, ORDERS, TestService, assert_rejected, deleted_version, money, request, user,
};

const STORED_RESPONSES: &str = "select count(*) from request_ids";

fn repeatable(user_id: Uuid) -> CreateOrderRequest {
    CreateOrderRequest {
        request_id: Uuid::new_v4().to_string(),
        ..request(user_id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_gets_the_first_response_even_if_the_user_was_deleted() -> Result<()> {
    let service = TestService::start("repeat").await?;
    let user = service.known_user().await?;
    let request = repeatable(user.user_id);
    let first = service.create(request.clone()).await?;
    assert_eq!(service.create(request.clone()).await?, first);
    let deleted = deleted_version(&user);
    service.publish_user(&deleted).await?;
    service.wait_for_version(&deleted).await?;
    // The order was cancelled meanwhile; the stored response is unchanged.
    assert_eq!(service.create(request).await?, first);
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 2);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_may_add_a_token_and_change_the_case_of_ids() -> Result<()> {
    let service = TestService::start("spelling").await?;
    let user = service.known_user().await?;
    let first = repeatable(user.user_id);
    let created = service.create(first.clone()).await?;
    let token = ConsistencyToken {
        aggregate: Aggregate::User,
        id: user.user_id,
        version: user.version,
    };
    let again = CreateOrderRequest {
        user_id: first.user_id.to_uppercase(),
        request_id: first.request_id.to_uppercase(),
        consistency_token: token.encode(),
        ..first
    };
    assert_eq!(service.create(again).await?, created);
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_with_a_different_body_is_rejected() -> Result<()> {
    let service = TestService::start("reused").await?;
    let (ada, bob) = (service.known_user().await?, service.known_user().await?);
    let first = repeatable(ada.user_id);
    service.create(first.clone()).await?;
    let other_amount = CreateOrderRequest {
        amount: Some(money("EUR", 20, 0)),
        ..first.clone()
    };
    let other_user = CreateOrderRequest {
        user_id: bob.user_id.to_string(),
        ..first
    };
    for other in [other_amount, other_user] {
        assert_rejected(
            service.create(other).await,
            Code::InvalidArgument,
            "REQUEST_ID_REUSED",
        );
    }
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_retries_create_one_order_and_get_the_same_response() -> Result<()> {
    let service = TestService::start("at_once").await?;
    let request = repeatable(service.known_user().await?.user_id);
    let responses = try_join_all((0..16).map(|_| service.create_at_last(&request))).await?;
    assert!(responses.iter().all(|response| *response == responses[0]));
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    assert_eq!(service.sql.count(STORED_RESPONSES).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_order_is_not_stored_and_its_retry_is_processed_again() -> Result<()> {
    let service = TestService::start_with("rejected", &["--unknown-user-wait-ms=0"]).await?;
    let user = user();
    let request = repeatable(user.user_id);
    assert_rejected(
        service.create(request.clone()).await,
        Code::FailedPrecondition,
        "USER_UNKNOWN",
    );
    assert_eq!(service.sql.count(STORED_RESPONSES).await?, 0);
    service.publish_user(&user).await?;
    service.wait_for_version(&user).await?;
    let created = service.create(request.clone()).await?;
    assert_eq!(service.create(request).await?, created);
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_case_insensitive() -> Result<()> {
    let service = TestService::start("spelled").await?;
    let mut request = repeatable(service.known_user().await?.user_id);
    let first = service.create(request.clone()).await?;
    request.request_id = request.request_id.to_uppercase();
    assert_eq!(service.create(request).await?, first);
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_gets_the_first_response_after_the_databases_clock_jumped_ahead() -> Result<()> {
    let service = TestService::start("clock").await?;
    let user = service.known_user().await?;
    let request = repeatable(user.user_id);
    let first = service.create(request.clone()).await?;
    service.sql.move_clock_ahead("25 hours").await?;
    // The server deletes expired responses at startup.
    let service = service.restart().await?;
    service.sql.wait_for_clock_reading().await?;
    // Waits for a deletion that has read the clock.
    let wait = "begin; lock table request_ids; commit";
    service.sql.batch_execute(wait).await?;
    assert_eq!(service.create(request).await?, first);
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    service.stop().await
}
