//! CreateOrder with a consistency token: whoever has seen a user can order for it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use proto::{Aggregate, ConsistencyToken, events::User, order::v1::CreateOrderRequest};
use tokio::time::timeout;
use tonic::Code;
use uuid::Uuid;

use crate::harness::{
    ORDERS, TestService, WAIT_LONG, assert_refusal, assert_refused, next_version, request, user,
};

/// An order of one who has seen this version of the user.
fn request_after(user: &User) -> CreateOrderRequest {
    let token = ConsistencyToken {
        aggregate: Aggregate::User,
        id: user.user_id,
        version: user.version,
    };
    CreateOrderRequest {
        consistency_token: token.encode(),
        ..request(user.user_id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_until_the_user_of_its_token_has_arrived() -> Result<()> {
    let options = [&WAIT_LONG[..], &["--unknown-user-wait-ms=0"]].concat();
    let service = TestService::start_with("token", &options).await?;
    let user = user();
    let arriving = async {
        service.wait_for_waiting_call().await?;
        service.tell(&user).await
    };
    let (created, arrived) = tokio::join!(service.create(request_after(&user)), arriving);
    arrived?;
    created?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_than_the_tokens_is_not_enough_and_a_newer_one_is() -> Result<()> {
    let service = TestService::start_with("versions", &WAIT_LONG).await?;
    let first = service.known_user().await?;
    let second = next_version(&first, false);
    let third = next_version(&second, true);
    // Had the first version been enough, the order would be placed: the user lived then.
    let arriving = async {
        service.wait_for_waiting_call().await?;
        service.tell(&third).await
    };
    let (refused, arrived) = tokio::join!(service.create(request_after(&second)), arriving);
    arrived?;
    assert_refused(refused, Code::FailedPrecondition, "USER_DELETED");
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_arrive_in_time_is_lag_and_worth_a_retry() -> Result<()> {
    let service = TestService::start_with("lag", &["--token-wait-ms=100"]).await?;
    let known = service.known_user().await?;
    for late in [user(), next_version(&known, false)] {
        let status = service.create(request_after(&late)).await;
        let status = status.expect_err("nothing has arrived");
        let details = assert_refusal(&status, Code::Unavailable, "PROJECTION_LAGGING");
        let retry = details.retry_info().context("no RetryInfo")?;
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(250)));
        let pushback = status.metadata().get("grpc-retry-pushback-ms");
        assert_eq!(pushback.context("no pushback")?, "250");
    }
    assert_eq!(service.sql.count(ORDERS).await?, 0);
    // As the hint says: once it has arrived, the same call succeeds.
    let late = next_version(&known, false);
    service.tell(&late).await?;
    service.wait_for_version(&late).await?;
    service.create(request_after(&late)).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_whose_wait_there_is_no_room_is_told_at_once() -> Result<()> {
    // A third of the wait that there would be with room.
    let at_once = Duration::from_secs(20);
    let options = [&WAIT_LONG[..], &["--max-waiters=0"]].concat();
    let service = TestService::start_with("room", &options).await?;
    let lagging = timeout(at_once, service.create(request_after(&user()))).await?;
    assert_refused(lagging, Code::Unavailable, "PROJECTION_LAGGING");
    let unknown = timeout(at_once, service.create(request(Uuid::now_v7()))).await?;
    assert_refused(unknown, Code::FailedPrecondition, "USER_UNKNOWN");
    // Who need not wait needs no room.
    let known = service.known_user().await?;
    service.create(request_after(&known)).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_an_order_needs_no_wait() -> Result<()> {
    let service = TestService::start_with("own", &WAIT_LONG).await?;
    let user = service.known_user().await?;
    let first = service.create(request(user.user_id)).await?;
    let second = CreateOrderRequest {
        consistency_token: first.consistency_token,
        ..request(user.user_id)
    };
    service.create(second).await?;
    service.stop().await
}
