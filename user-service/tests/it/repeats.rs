//! Requests with a `request_id` can be repeated.

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use proto::user::v1::CreateUserRequest;
use tonic::Code;
use uuid::Uuid;

use crate::harness::{EVENTS, TestService, USERS, assert_refused, request};

const KEPT_ANSWERS: &str = "select count(*) from request_ids";

fn repeatable(name: &str) -> CreateUserRequest {
    CreateUserRequest {
        request_id: Uuid::new_v4().to_string(),
        ..request(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer_and_writes_nothing() -> Result<()> {
    let service = TestService::start("repeat").await?;
    let request = repeatable("ada");
    let first = service.create(request.clone()).await?;
    // Also when the user has changed meanwhile: the answer is the first one, not a fresh one.
    service
        .sql
        .batch_execute("update users set name = 'Changed', version = 2")
        .await?;
    for _ in 0..3 {
        assert_eq!(service.create(request.clone()).await?, first);
    }
    assert_eq!(service.sql.count(USERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_with_another_body_is_refused() -> Result<()> {
    let service = TestService::start("reused").await?;
    let first = repeatable("ada");
    service.create(first.clone()).await?;
    let other_name = CreateUserRequest {
        name: "Another".into(),
        ..first.clone()
    };
    let other_email = CreateUserRequest {
        email: "another@example.com".into(),
        ..first
    };
    for other in [other_name, other_email] {
        assert_refused(
            service.create(other).await,
            Code::InvalidArgument,
            "REQUEST_ID_REUSED",
        );
    }
    assert_eq!(service.sql.count(USERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_at_once_make_one_user_and_get_one_answer() -> Result<()> {
    let service = TestService::start("at_once").await?;
    let request = repeatable("ada");
    let answers = try_join_all((0..16).map(|_| service.create_at_last(&request))).await?;
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(service.sql.count(USERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    assert_eq!(service.sql.count(KEPT_ANSWERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_not_kept_and_can_succeed_later() -> Result<()> {
    let service = TestService::start("refused").await?;
    let ada = service.user("ada").await?;
    let request = repeatable("ada");
    assert_refused(
        service.create(request.clone()).await,
        Code::AlreadyExists,
        "EMAIL_TAKEN",
    );
    assert_eq!(service.sql.count(KEPT_ANSWERS).await?, 0);
    // The owner gives the address up.
    service.delete(&ada).await?;
    let created = service.create(request.clone()).await?;
    assert_eq!(service.create(request).await?, created);
    assert_eq!(service.sql.count(KEPT_ANSWERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_a_request_in_flight_is_told_to_come_back() -> Result<()> {
    let service = TestService::start("in_flight").await?;
    let request = repeatable("ada");
    let lock = service.lock_users().await?;
    let repeating = async {
        service.wait_for_held_calls(1).await?;
        let repeat = service.create(request.clone()).await;
        let details = assert_refused(repeat, Code::Aborted, "REQUEST_IN_FLIGHT");
        let retry = details.retry_info().context("no RetryInfo")?;
        assert!(retry.retry_delay.is_some());
        lock.release().await
    };
    let (first, repeated) = tokio::join!(service.create(request.clone()), repeating);
    repeated?;
    assert_eq!(service.create(request).await?, first?);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_the_same_however_it_is_spelled() -> Result<()> {
    let service = TestService::start("spelled").await?;
    let mut request = repeatable("ada");
    let first = service.create(request.clone()).await?;
    request.request_id = request.request_id.to_uppercase();
    assert_eq!(service.create(request.clone()).await?, first);
    request.request_id = request.request_id.replace('-', "");
    assert_eq!(service.create(request).await?, first);
    assert_eq!(service.sql.count(USERS).await?, 1);
    service.stop().await
}
