//! Every documented error, as a caller sees it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use prost::Message as _;
use proto::user::v1::{CreateUserRequest, GetUserOrderSummaryRequest, ListUsersRequest, User};
use service_kit::Reason;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    harness::{TestService, renaming, request, retry_call, update},
    wire::{rejected_bytes, rejected_call},
};

const CREATE_USER: &str = "/user.v1.UserService/CreateUser";

/// The rejections of calls, by reason.
#[derive(Default)]
struct Rejections(BTreeMap<String, Status>);

impl Rejections {
    fn add<T>(&mut self, result: Result<T, Status>) -> Result<()> {
        let status = result.err().context("the call was accepted")?;
        let info = status.get_details_error_info().context("no ErrorInfo")?;
        self.0.insert(info.reason, status);
        Ok(())
    }
}

/// Provokes errors by invalid requests.
async fn reject_requests(service: &TestService, rejections: &mut Rejections) -> Result<()> {
    let first = CreateUserRequest {
        request_id: Uuid::new_v4().to_string(),
        ..request("ada")
    };
    let ada = service.create(first.clone()).await?.user.context("none")?;
    rejections.add(service.create(CreateUserRequest::default()).await)?;
    rejections.add(service.create(request("ada")).await)?;
    let other = CreateUserRequest {
        name: "Another".into(),
        ..first
    };
    rejections.add(service.create(other).await)?;
    let list = ListUsersRequest {
        page_token: "1".into(),
        ..ListUsersRequest::default()
    };
    rejections.add(service.users().list_users(list).await)?;
    let stale = User {
        etag: "garbage".into(),
        ..ada.clone()
    };
    rejections.add(service.update(update(stale, &["name"])).await)?;
    rejections.add(service.get(&Uuid::now_v7().to_string()).await)?;

    let beyond = "insert into user_order_summaries
                  select user_id, 'JPY', 1, 0, 9223372036854775808, now() from users";
    service.sql.batch_execute(beyond).await?;
    let summary = GetUserOrderSummaryRequest {
        user_id: ada.user_id.clone(),
    };
    rejections.add(service.users().get_user_order_summary(summary).await)?;

    service.delete(&ada).await?;
    rejections.add(service.update(renaming(&ada, "Ada")).await)
}

/// Provokes errors of calls that reach no method.
async fn reject_bytes(service: &TestService, rejections: &mut Rejections) -> Result<()> {
    let unknown = rejected_call(service.addr, "/user.v1.UserService/Nothing", None, &[]);
    rejections.add::<()>(Err(unknown.await?))?;
    let garbage = rejected_call(service.addr, CREATE_USER, None, &[0xff; 20]);
    rejections.add::<()>(Err(garbage.await?))?;
    let large = rejected_call(service.addr, CREATE_USER, None, &[0; 70_000]);
    rejections.add::<()>(Err(large.await?))?;
    // No message, and a compressed message without an encoding, for which gRPC requires INTERNAL.
    for bytes in [&[][..], &[1, 0, 0, 0, 1, 0]] {
        let bytes = Bytes::from_static(bytes);
        let status = rejected_bytes(service.addr, CREATE_USER, None, bytes).await?;
        assert_eq!(status.code(), Code::Internal);
        rejections.add::<()>(Err(status))?;
    }
    Ok(())
}

/// Provokes a deadline, and a retry of a request in flight.
async fn reject_while_held(service: &TestService, rejections: &mut Rejections) -> Result<()> {
    let lock = service.lock_users().await?;
    let first = CreateUserRequest {
        request_id: Uuid::new_v4().to_string(),
        ..request("bob")
    };
    let rejecting = async {
        service.wait_for_held_calls(1).await?;
        rejections.add(service.create(first.clone()).await)?;
        let message = request("carol").encode_to_vec();
        let late = rejected_call(service.addr, CREATE_USER, Some("100m"), &message).await?;
        rejections.add::<()>(Err(late))?;
        lock.release().await
    };
    let (created, rejected) = tokio::join!(service.create_at_last(&first), rejecting);
    rejected?;
    created?;
    Ok(())
}

/// Provokes OVERLOADED.
async fn reject_a_second_call(rejections: &mut Rejections) -> Result<()> {
    let service = TestService::start_with("full", &["--max-calls=1"]).await?;
    let lock = service.lock_users().await?;
    let first = request("ada");
    let rejecting = async {
        service.wait_for_held_calls(1).await?;
        rejections.add(service.create(request("bob")).await)?;
        lock.release().await
    };
    let (created, rejected) = tokio::join!(service.create_at_last(&first), rejecting);
    rejected?;
    created?;
    service.stop().await
}

/// Provokes errors of the database.
async fn reject_for_the_database(service: &TestService, rejections: &mut Rejections) -> Result<()> {
    service.make_read_only().await?;
    rejections.add(service.create(request("dora")).await)?;
    service.make_writable().await?;
    let other_schema = "alter table users rename column update_time to secret_column";
    service.sql.batch_execute(other_schema).await?;
    // Some connections may predate the change.
    let broken = retry_call(async || service.get(&Uuid::now_v7().to_string()).await).await;
    if let Err(status) = &broken {
        let response = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
        assert!(!response.contains("secret_column"), "{response}");
        assert!(!response.contains("update_time"), "{response}");
    }
    rejections.add(broken)
}

/// Checks that a rejection has exactly the documented code and details.
#[track_caller]
fn assert_as_documented(status: &Status, row: &Reason) {
    // The code of TRANSPORT varies.
    if row.name != "TRANSPORT" {
        assert_eq!(status.code(), row.code, "{}", row.name);
    }
    assert!(!status.message().is_empty(), "{}", row.name);
    let found = status.get_error_details();
    let info = found.error_info().expect("every error has an ErrorInfo");
    assert_eq!(info.domain, user_service::NAME);
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    for (detail, is_present) in [
        ("BadRequest", found.bad_request().is_some()),
        (
            "PreconditionFailure",
            found.precondition_failure().is_some(),
        ),
        ("RequestInfo", found.request_info().is_some()),
        ("ResourceInfo", found.resource_info().is_some()),
        ("RetryInfo", found.retry_info().is_some()),
        ("`grpc-retry-pushback-ms`", pushback.is_some()),
        ("QuotaFailure", found.quota_failure().is_some()),
        ("DebugInfo", found.debug_info().is_some()),
        ("Help", found.help().is_some()),
        ("LocalizedMessage", found.localized_message().is_some()),
    ] {
        let is_documented = row.details.contains(detail);
        assert_eq!(is_present, is_documented, "{} and {detail}", row.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_error_has_its_code_and_details() -> Result<()> {
    let service = TestService::start("errors").await?;
    let mut rejections = Rejections::default();
    reject_requests(&service, &mut rejections).await?;
    reject_bytes(&service, &mut rejections).await?;
    reject_while_held(&service, &mut rejections).await?;
    reject_a_second_call(&mut rejections).await?;
    reject_for_the_database(&service, &mut rejections).await?;
    let rows = user_service::error::TABLE.iter().chain(service_kit::TABLE);
    for row in rows {
        let Some(status) = rejections.0.remove(row.name) else {
            bail!("no call provokes {}: add one", row.name);
        };
        assert_as_documented(&status, row);
    }
    let others: Vec<_> = rejections.0.keys().collect();
    assert!(others.is_empty(), "undocumented: {others:?}");
    service.stop().await
}
