//! Requests with a `request_id` are idempotent.

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use proto::user::v1::{CreateUserRequest, DeleteUserRequest, UpdateUserRequest};
use tonic::Code;
use uuid::Uuid;

use crate::harness::{
    CROWDED, EVENTS, TestService, USERS, assert_rejected, deletion, renaming, request,
};

const STORED_RESPONSES: &str = "select count(*) from request_ids";

fn repeatable(name: &str) -> CreateUserRequest {
    CreateUserRequest {
        request_id: Uuid::new_v4().to_string(),
        ..request(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_gets_the_first_response_and_writes_nothing() -> Result<()> {
    let service = TestService::start("repeat").await?;
    let request = repeatable("ada");
    let first = service.create(request.clone()).await?;
    // Even if the user has changed meanwhile, the response is the stored one.
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
async fn a_request_id_with_a_different_body_is_rejected() -> Result<()> {
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
        assert_rejected(
            service.create(other).await,
            Code::InvalidArgument,
            "REQUEST_ID_REUSED",
        );
    }
    assert_eq!(service.sql.count(USERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_retries_create_one_user_and_get_the_same_response() -> Result<()> {
    let service = TestService::start_with("at_once", CROWDED).await?;
    let request = repeatable("ada");
    let responses = try_join_all((0..64).map(|_| service.create_at_last(&request))).await?;
    assert!(responses.iter().all(|answer| *answer == responses[0]));
    assert_eq!(service.sql.count(USERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    assert_eq!(service.sql.count(STORED_RESPONSES).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_gets_the_first_response_after_a_restart() -> Result<()> {
    let service = TestService::start("restarted").await?;
    let request = repeatable("ada");
    let first = service.create(request.clone()).await?;
    let service = service.restart().await?;
    assert_eq!(service.create(request).await?, first);
    assert_eq!(service.sql.count(USERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_and_deletions_are_idempotent_like_creations() -> Result<()> {
    let service = TestService::start("other_methods").await?;
    let (ada, bob) = (service.user("ada").await?, service.user("bob").await?);
    let changing = UpdateUserRequest {
        request_id: Uuid::new_v4().to_string(),
        ..renaming(&ada, "Countess")
    };
    let changed = service.update(changing.clone()).await?;
    let other_name = UpdateUserRequest {
        user: renaming(&ada, "Another").user,
        ..changing.clone()
    };
    let other_mask = UpdateUserRequest {
        update_mask: None,
        ..changing.clone()
    };
    for other in [other_name, other_mask] {
        let rejected = service.update(other).await;
        assert_rejected(rejected, Code::InvalidArgument, "REQUEST_ID_REUSED");
    }
    let deleting = DeleteUserRequest {
        request_id: Uuid::new_v4().to_string(),
        ..deletion(&ada.user_id)
    };
    let deleted = service.delete_with(deleting.clone()).await?;
    let other_user = DeleteUserRequest {
        user_id: bob.user_id.clone(),
        ..deleting.clone()
    };
    let other_wish = DeleteUserRequest {
        allow_missing: true,
        ..deleting.clone()
    };
    for other in [other_user, other_wish] {
        let rejected = service.delete_with(other).await;
        assert_rejected(rejected, Code::InvalidArgument, "REQUEST_ID_REUSED");
    }
    // The stored responses, although that user can no longer be changed.
    assert_eq!(service.update(changing).await?, changed);
    assert_eq!(service.delete_with(deleting).await?, deleted);
    assert_eq!(service.get(&bob.user_id).await?, bob);
    assert_eq!(service.sql.count(EVENTS).await?, 5);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_are_scoped_to_a_method() -> Result<()> {
    let service = TestService::start("methods").await?;
    let request = repeatable("ada");
    let request_id = request.request_id.clone();
    let created = service.create(request.clone()).await?;
    let ada = created.user.clone().context("no user")?;
    let changing = UpdateUserRequest {
        request_id: request_id.clone(),
        ..renaming(&ada, "Countess")
    };
    let changed = service.update(changing.clone()).await?;
    let deleting = DeleteUserRequest {
        request_id,
        ..deletion(&ada.user_id)
    };
    let deleted = service.delete_with(deleting.clone()).await?;
    assert_eq!(service.create(request).await?, created);
    assert_eq!(service.update(changing).await?, changed);
    assert_eq!(service.delete_with(deleting).await?, deleted);
    assert_eq!(service.sql.count(STORED_RESPONSES).await?, 3);
    assert_eq!(service.events_of(&ada.user_id).await?.len(), 4);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_older_than_a_day_are_deleted_and_younger_ones_kept() -> Result<()> {
    let service = TestService::start("swept").await?;
    // More than one statement deletes, and some that are almost expired.
    let aged = "insert into request_ids (method, request_id, fingerprint, response, created_at)
                select 'CreateUser', gen_random_uuid(), '', '', now() - age
                from (values (2500, interval '24 hours 1 second'), (2500, interval '30 days'),
                             (1500, interval '23 hours'), (1500, interval '0')) as of (number, age),
                     generate_series(1, number)";
    service.sql.batch_execute(aged).await?;
    let request = repeatable("ada");
    let first = service.create(request.clone()).await?;
    // A server deletes expired responses at startup.
    let service = service.restart().await?;
    service.sql.wait_for(STORED_RESPONSES, 3_001).await?;
    let old = format!("{STORED_RESPONSES} where created_at < now() - interval '24 hours'");
    assert_eq!(service.sql.count(&old).await?, 0);
    assert_eq!(service.create(request).await?, first);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_request_is_not_stored_and_can_succeed_later() -> Result<()> {
    let service = TestService::start("rejected").await?;
    let ada = service.user("ada").await?;
    let request = repeatable("ada");
    assert_rejected(
        service.create(request.clone()).await,
        Code::AlreadyExists,
        "EMAIL_TAKEN",
    );
    assert_eq!(service.sql.count(STORED_RESPONSES).await?, 0);
    // The owner releases the address.
    service.delete(&ada).await?;
    let created = service.create(request.clone()).await?;
    assert_eq!(service.create(request).await?, created);
    assert_eq!(service.sql.count(STORED_RESPONSES).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_request_in_flight_gets_a_retry_delay() -> Result<()> {
    let service = TestService::start("in_flight").await?;
    let request = repeatable("ada");
    let lock = service.lock_users().await?;
    let repeating = async {
        service.wait_for_held_calls(1).await?;
        let repeat = service.create(request.clone()).await;
        let details = assert_rejected(repeat, Code::Aborted, "REQUEST_IN_FLIGHT");
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
async fn a_request_id_is_case_insensitive() -> Result<()> {
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
