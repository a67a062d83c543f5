//! BatchGetUsers returns one user per id, in request order, or a rejection that names the invalid id.

use anyhow::{Context as _, Result};
use proto::user::v1::{BatchGetUsersRequest, User};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{TestService, assert_rejected};

async fn batch(service: &TestService, user_ids: &[&str]) -> Result<Vec<User>, Status> {
    let request = BatchGetUsersRequest {
        user_ids: user_ids.iter().map(|&id| id.to_owned()).collect(),
    };
    let response = service.users().batch_get_users(request).await?;
    Ok(response.into_inner().users)
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_returned_in_request_order_including_repeated_ids() -> Result<()> {
    let service = TestService::start("batch").await?;
    let (ada, bob) = (service.user("ada").await?, service.user("bob").await?);
    let gone = service.delete(&service.user("gone").await?).await?;
    let wanted = [&gone, &ada, &bob, &ada].map(Clone::clone);
    let ids = wanted.each_ref().map(|user| user.user_id.as_str());
    assert_eq!(batch(&service, &ids).await?, wanted);
    // The maximum number of ids, one in another spelling.
    let upper = ada.user_id.to_uppercase();
    let mut ids = vec![ada.user_id.as_str(); 99];
    ids.push(&upper);
    assert_eq!(batch(&service, &ids).await?, vec![ada.clone(); 100]);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_unknown_id_is_reported_and_no_user_is_returned() -> Result<()> {
    let service = TestService::start("batch_unknown").await?;
    let ada = service.user("ada").await?;
    let [first, second] = [Uuid::now_v7(), Uuid::now_v7()].map(|id| id.to_string());
    for (ids, named) in [
        ([ada.user_id.as_str(), &first, &second], &first),
        ([&second, &ada.user_id, &first], &second),
    ] {
        let details = assert_rejected(
            batch(&service, &ids).await,
            Code::NotFound,
            "USER_NOT_FOUND",
        );
        let resource = details.resource_info().context("no ResourceInfo")?;
        assert_eq!(&resource.resource_name, named);
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_too_few_or_too_many_ids_are_reported() -> Result<()> {
    let service = TestService::start("batch_bad").await?;
    let id = service.user("ada").await?.user_id;
    let too_many = vec![id.as_str(); 101];
    for (ids, fields) in [
        (
            &[&*id, "1", &id, ""][..],
            &["user_ids[1]", "user_ids[3]"][..],
        ),
        (&[], &["user_ids"]),
        (&too_many, &["user_ids"]),
    ] {
        let rejected = batch(&service, ids).await;
        let details = assert_rejected(rejected, Code::InvalidArgument, "VALIDATION_FAILED");
        let violations = details.bad_request().context("no BadRequest")?;
        let violations = &violations.field_violations;
        let named: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(named, fields);
    }
    service.stop().await
}
