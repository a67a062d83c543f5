//! The consistency token of a mutation in the response metadata.

use anyhow::{Context as _, Result};
use proto::{ConsistencyToken, user::v1::DeleteUserRequest};
use service_kit::CONSISTENCY_TOKEN;
use tonic::Response;
use uuid::Uuid;

use crate::harness::{TestService, deletion, renaming, request};

/// Returns the token in the metadata.
fn carried<T>(response: &Response<T>) -> Result<&str> {
    let token = response.metadata().get(CONSISTENCY_TOKEN);
    Ok(token.context("no token in the metadata")?.to_str()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mutation_and_its_retry_has_the_token_in_the_metadata() -> Result<()> {
    let service = TestService::start("metadata").await?;
    let mut users = service.users();
    let mut creating = request("ada");
    creating.request_id = Uuid::new_v4().to_string();
    let created = users.create_user(creating.clone()).await?;
    let repeated = users.create_user(creating).await?;
    let ada = created.get_ref().user.clone().context("no user")?;
    let updated = users.update_user(renaming(&ada, "Countess")).await?;
    let deleted = users.delete_user(deletion(&ada.user_id)).await?;
    let (created, updated, deleted) = (
        (carried(&created)?, &created.get_ref().consistency_token),
        (carried(&updated)?, &updated.get_ref().consistency_token),
        (carried(&deleted)?, &deleted.get_ref().consistency_token),
    );
    assert_eq!(carried(&repeated)?, created.1);
    for (version, (carried, token)) in (1..).zip([created, updated, deleted]) {
        assert_eq!(carried, token);
        let named = ConsistencyToken::decode(carried).map(|token| (token.id, token.version));
        assert_eq!(named, Ok((ada.user_id.parse()?, version)));
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_of_a_missing_user_has_no_token() -> Result<()> {
    let service = TestService::start("no_token").await?;
    let request = DeleteUserRequest {
        allow_missing: true,
        ..deletion(&Uuid::now_v7().to_string())
    };
    let response = service.users().delete_user(request).await?;
    assert_eq!(response.get_ref().consistency_token, "");
    assert!(response.metadata().get(CONSISTENCY_TOKEN).is_none());
    service.stop().await
}
