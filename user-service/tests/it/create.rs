//! CreateUser writes one row and one event, or neither.

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use proto::{
    Aggregate, ConsistencyToken,
    events::{self, USER_CREATED},
    user::v1::{CreateUserRequest, GetUserRequest},
};
use tonic::{Code, Request};

use crate::harness::{
    EVENTS, TestService, USERS, USERS_TOPIC, assert_rejected, assert_rejection, request,
};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_user_writes_one_row_and_one_event_in_one_transaction() -> Result<()> {
    let service = TestService::start("create").await?;
    let mut request = Request::new(CreateUserRequest {
        email: " Ada@Example.com ".into(),
        name: " Ada Lovelace ".into(),
        request_id: String::new(),
    });
    let traceparent = TRACEPARENT.parse()?;
    request.metadata_mut().insert("traceparent", traceparent);
    let response = service.users().create_user(request).await?.into_inner();
    let user = response.user.context("a response without a user")?;
    assert_eq!(
        (user.email.as_str(), user.name.as_str(), user.version),
        ("Ada@Example.com", "Ada Lovelace", 1)
    );
    assert_eq!((&user.delete_time, user.etag.is_empty()), (&None, false));
    let token = ConsistencyToken {
        aggregate: Aggregate::User,
        id: user.user_id.parse()?,
        version: 1,
    };
    assert_eq!(response.consistency_token, token.encode());

    // Each of these queries fails unless there is exactly one row.
    let row = "select user_id::text, email, email_key, name, version, xmin::text from users";
    let row = service.sql.query_one(row, &[]).await?;
    let text = |column| row.get::<_, &str>(column);
    assert_eq!(
        (text(0), text(1), text(2), text(3), row.get(4)),
        (
            user.user_id.as_str(),
            "Ada@Example.com",
            "ada@example.com",
            "Ada Lovelace",
            1_i64
        )
    );
    let event = "select topic, key, event_type, traceparent, xid::text, aggregate_version, payload
                 from outbox";
    let event = service.sql.query_one(event, &[]).await?;
    assert_eq!(
        [0, 1, 2, 3, 4].map(|column| event.get::<_, &str>(column)),
        [
            USERS_TOPIC,
            &user.user_id,
            USER_CREATED,
            TRACEPARENT,
            text(5)
        ]
    );
    assert_eq!(event.get::<_, i64>(5), 1);
    let state: events::User = serde_json::from_slice(event.get(6))?;
    assert_eq!(Some(proto::timestamp(state.create_time)), user.create_time);
    assert_eq!(Some(proto::timestamp(state.update_time)), user.update_time);
    let expected = events::User {
        user_id: user.user_id.parse()?,
        email: user.email.clone(),
        name: user.name.clone(),
        version: 1,
        deleted: false,
        ..state.clone()
    };
    assert_eq!(state, expected);

    // Later reads return the same user, to the microsecond.
    let id = GetUserRequest {
        user_id: user.user_id.clone(),
    };
    let read = service.users().get_user(id).await?.into_inner().user;
    assert_eq!(read, Some(user));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_invalid_field_is_reported_and_nothing_is_written() -> Result<()> {
    let service = TestService::start("fields").await?;
    let bad = CreateUserRequest {
        email: "ada".into(),
        name: "Ada\nLovelace".into(),
        request_id: "1".into(),
    };
    let details = assert_rejected(
        service.create(bad).await,
        Code::InvalidArgument,
        "VALIDATION_FAILED",
    );
    let violations = details.bad_request().context("no BadRequest")?;
    let violations = &violations.field_violations;
    let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["email", "name", "request_id"]);
    assert!(violations.iter().all(|v| !v.description.is_empty()));
    assert_eq!(service.sql.count(USERS).await?, 0);
    assert_eq!(service.sql.count(EVENTS).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_email_is_taken_in_any_case_and_its_owner_is_not_revealed() -> Result<()> {
    let service = TestService::start("taken").await?;
    let owner = CreateUserRequest {
        email: "José.Owner@Example.com".into(),
        name: "Secretive".into(),
        request_id: String::new(),
    };
    let owner = service.create(owner).await?.user.context("no user")?;
    for email in ["José.Owner@Example.com", "JOSÉ.OWNER@EXAMPLE.COM"] {
        let other = CreateUserRequest {
            email: email.into(),
            ..request("other")
        };
        let status = service.create(other).await.expect_err("taken");
        let response = format!(
            "{} {}",
            status.message(),
            String::from_utf8_lossy(status.details())
        );
        for secret in [&owner.user_id, &owner.name, &owner.email] {
            assert!(!response.contains(secret), "{response}");
        }
        let details = assert_rejection(&status, Code::AlreadyExists, "EMAIL_TAKEN");
        let resource = details.resource_info().context("no ResourceInfo")?;
        assert_eq!(
            (&*resource.resource_type, &*resource.resource_name),
            ("user.v1.User", "")
        );
    }
    assert_eq!(service.sql.count(USERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_many_concurrent_calls_for_an_email_succeeds() -> Result<()> {
    let service = TestService::start("race").await?;
    let calls = (0..16).map(async |n| {
        let email = if n % 2 == 0 { "ada" } else { "ADA" };
        let request = CreateUserRequest {
            email: format!("{email}@example.com"),
            ..request("Ada")
        };
        service.create_at_last(&request).await
    });
    let (created, rejected): (Vec<_>, Vec<_>) =
        join_all(calls).await.into_iter().partition(Result::is_ok);
    assert_eq!((created.len(), rejected.len()), (1, 15));
    for rejected in rejected {
        assert_rejected(rejected, Code::AlreadyExists, "EMAIL_TAKEN");
    }
    assert_eq!(service.sql.count(USERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    service.stop().await
}
