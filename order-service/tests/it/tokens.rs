//! CreateOrder with a consistency token: a caller that has seen a user can order for it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use proto::{events::User, order::v1::CreateOrderRequest};
use service_kit::CONSISTENCY_TOKEN;
use tokio::time::timeout;
use tonic::{Code, Request, metadata::MetadataValue};
use uuid::Uuid;

use crate::harness::{
    ORDERS, TestService, WAIT_LONG, assert_rejected, assert_rejection, deleted_version,
    next_version, request, token_of, user,
};

/// Creates a request with the token of this user version.
fn request_after(user: &User) -> CreateOrderRequest {
    CreateOrderRequest {
        consistency_token: token_of(user),
        ..request(user.user_id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_the_user_of_its_token() -> Result<()> {
    let options = [&WAIT_LONG[..], &["--unknown-user-wait-ms=0"]].concat();
    let service = TestService::start_with("token", &options).await?;
    let user = user();
    let arriving = async {
        service.wait_for_waiting_call().await?;
        service.publish_user(&user).await
    };
    let (created, arrived) = tokio::join!(service.create(request_after(&user)), arriving);
    arrived?;
    created?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_the_version_of_its_token_or_a_later_one() -> Result<()> {
    let service = TestService::start_with("versions", &WAIT_LONG).await?;
    let first = service.known_user().await?;
    let second = next_version(&first);
    let third = deleted_version(&second);
    // With the first version the order would be accepted, because the user existed then.
    let arriving = async {
        service.wait_for_waiting_call().await?;
        service.publish_user(&third).await
    };
    let (rejected, arrived) = tokio::join!(service.create(request_after(&second)), arriving);
    arrived?;
    assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_arrive_in_time_is_rejected_with_a_retry_delay() -> Result<()> {
    let service = TestService::start_with("lag", &["--token-wait-ms=100"]).await?;
    let known = service.known_user().await?;
    for late in [user(), next_version(&known)] {
        let status = service.create(request_after(&late)).await;
        let status = status.expect_err("nothing has arrived");
        let details = assert_rejection(&status, Code::Unavailable, "PROJECTION_LAGGING");
        let retry = details.retry_info().context("no RetryInfo")?;
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(250)));
        let pushback = status.metadata().get("grpc-retry-pushback-ms");
        assert_eq!(pushback.context("no pushback")?, "250");
    }
    assert_eq!(service.sql.count(ORDERS).await?, 0);
    // Once the version has arrived, the same call succeeds.
    let late = next_version(&known);
    service.publish_user(&late).await?;
    service.wait_for_version(&late).await?;
    service.create(request_after(&late)).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_beyond_the_limit_on_waiters_is_rejected_at_once() -> Result<()> {
    // A third of the wait below the limit.
    let at_once = Duration::from_secs(20);
    let options = [&WAIT_LONG[..], &["--max-waiters=0"]].concat();
    let service = TestService::start_with("limit", &options).await?;
    let lagging = timeout(at_once, service.create(request_after(&user()))).await?;
    assert_rejected(lagging, Code::Unavailable, "PROJECTION_LAGGING");
    let unknown = timeout(at_once, service.create(request(Uuid::now_v7()))).await?;
    assert_rejected(unknown, Code::FailedPrecondition, "USER_UNKNOWN");
    // A call that need not wait is not limited.
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

/// Creates the request with this token in its metadata.
fn carrying(request: CreateOrderRequest, token: &str) -> Result<Request<CreateOrderRequest>> {
    let mut request = Request::new(request);
    let token = token.parse()?;
    request.metadata_mut().insert(CONSISTENCY_TOKEN, token);
    Ok(request)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_the_metadata_works_like_one_in_the_field() -> Result<()> {
    let options = [&WAIT_LONG[..], &["--unknown-user-wait-ms=0"]].concat();
    let service = TestService::start_with("metadata", &options).await?;
    let user = user();
    let call = carrying(request(user.user_id), &token_of(&user))?;
    let arriving = async {
        service.wait_for_waiting_call().await?;
        service.publish_user(&user).await
    };
    let mut client = service.orders();
    let (created, arrived) = tokio::join!(client.create_order(call), arriving);
    arrived?;
    // The order's token is returned in the field and in the metadata.
    let created = created?;
    let carried = created.metadata().get(CONSISTENCY_TOKEN).cloned();
    let carried = carried.context("no token in the metadata")?;
    assert_eq!(carried.to_str()?, created.get_ref().consistency_token);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_in_the_field_takes_precedence_over_the_metadata() -> Result<()> {
    let service = TestService::start_with("field", &["--token-wait-ms=100"]).await?;
    let known = service.known_user().await?;
    let late = next_version(&known);
    let call = carrying(request_after(&known), &token_of(&late))?;
    service.orders().create_order(call).await?;
    let garbage = carrying(request_after(&known), "garbage")?;
    service.orders().create_order(garbage).await?;
    let call = carrying(request_after(&late), &token_of(&known))?;
    let rejected = service.orders().create_order(call).await;
    assert_rejected(rejected, Code::Unavailable, "PROJECTION_LAGGING");
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_token_in_the_metadata_is_reported_by_its_key() -> Result<()> {
    let service = TestService::start("malformed").await?;
    let user = service.known_user().await?;
    // The second value is not text, which a header allows.
    for bad in [&b"garbage"[..], b"\xfa\xfb"] {
        let mut call = Request::new(request(user.user_id));
        let value = MetadataValue::try_from(bad)?;
        call.metadata_mut().insert(CONSISTENCY_TOKEN, value);
        let rejected = service.orders().create_order(call).await;
        let details = assert_rejected(rejected, Code::InvalidArgument, "VALIDATION_FAILED");
        let violations = details.bad_request().context("no BadRequest")?;
        let violations = &violations.field_violations;
        let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["x-consistency-token"]);
    }
    assert_eq!(service.sql.count(ORDERS).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_an_update_waits_for_the_update() -> Result<()> {
    let service = TestService::start_with("update", &WAIT_LONG).await?;
    let first = service.known_user().await?;
    let second = next_version(&first);
    let arriving = async {
        service.wait_for_waiting_call().await?;
        assert_eq!(service.sql.count(ORDERS).await?, 0);
        service.publish_user(&second).await
    };
    let (created, arrived) = tokio::join!(service.create(request_after(&second)), arriving);
    arrived?;
    created?;
    let known = "select version from users_cache";
    assert_eq!(service.sql.count(known).await?, 2);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_a_deletion_leads_to_deleted_and_never_to_unknown() -> Result<()> {
    let options = [&WAIT_LONG[..], &["--unknown-user-wait-ms=0"]].concat();
    let service = TestService::start_with("deletion", &options).await?;
    // One user is unknown so far, the other is known.
    for user in [user(), service.known_user().await?] {
        let deleted = deleted_version(&user);
        let arriving = async {
            service.wait_for_waiting_call().await?;
            service.publish_user(&user).await?;
            service.publish_user(&deleted).await
        };
        let (rejected, arrived) = tokio::join!(service.create(request_after(&deleted)), arriving);
        arrived?;
        assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_call_keeps_its_slot_and_the_next_call_is_rejected_at_once() -> Result<()> {
    // A third of the wait below the limit.
    let at_once = Duration::from_secs(20);
    let options = [&WAIT_LONG[..], &["--max-waiters=1"]].concat();
    let service = TestService::start_with("max-waiters", &options).await?;
    let (first, second) = (user(), user());
    let after = async {
        service.wait_for_waiting_call().await?;
        let rejected = timeout(at_once, service.create(request_after(&second))).await?;
        assert_rejected(rejected, Code::Unavailable, "PROJECTION_LAGGING");
        service.publish_user(&first).await
    };
    let (created, arrived) = tokio::join!(service.create(request_after(&first)), after);
    arrived?;
    created?;
    // The slot is free again.
    let arriving = async {
        service.wait_for_waiting_call().await?;
        service.publish_user(&second).await
    };
    let (created, arrived) = tokio::join!(service.create(request_after(&second)), arriving);
    arrived?;
    created?;
    service.stop().await
}
