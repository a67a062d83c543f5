//! DeleteUser erases personal data and publishes the deletion with a tombstone.

use anyhow::{Context as _, Result};
use proto::{
    Aggregate, ConsistencyToken,
    events::{self, USER_DELETED},
    user::v1::{DeleteUserRequest, DeleteUserResponse, User},
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{EVENTS, TestService, USERS, assert_rejected, deletion, renaming};

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_is_erased_from_the_row_the_response_and_later_reads() -> Result<()> {
    let service = TestService::start("erased").await?;
    let ada = service.user("ada").await?;
    let renamed = service.update(renaming(&ada, "Countess")).await?.user;
    let renamed = renamed.context("no user")?;
    let response = service.delete_with(deletion(&ada.user_id)).await?;
    let user = response.user.context("a response without a user")?;
    let expected = User {
        user_id: ada.user_id.clone(),
        version: 3,
        create_time: ada.create_time,
        ..User::default()
    };
    let without_times = User {
        etag: String::new(),
        update_time: None,
        delete_time: None,
        ..user.clone()
    };
    assert_eq!(without_times, expected);
    assert!(![&ada.etag, &renamed.etag].contains(&&user.etag));
    assert_eq!(user.update_time, user.delete_time);
    assert!(user.delete_time.is_some());
    let token = ConsistencyToken {
        aggregate: Aggregate::User,
        id: ada.user_id.parse()?,
        version: 3,
    };
    let found = ConsistencyToken::decode(&response.consistency_token);
    assert_eq!(found, Ok(token));
    assert_eq!(service.get(&ada.user_id).await?, user);
    // Also in columns that no response contains.
    let kept = "select row_to_json(users)::text from users";
    let kept: String = service.sql.query_one(kept, &[]).await?.get(0);
    for erased in ["ada", "example.com", "Countess"] {
        assert!(!kept.contains(erased), "{kept}");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_writes_its_state_and_then_a_tombstone_in_one_transaction() -> Result<()> {
    let service = TestService::start("tombstone").await?;
    let ada = service.user("ada").await?;
    let deleted = service.delete(&ada).await?;
    let written = service.events_of(&ada.user_id).await?;
    let [_, deletion, tombstone] = &written[..] else {
        panic!("not two events for a deletion: {written:?}");
    };
    let xmin = "select xmin::text from users";
    let xmin: String = service.sql.query_one(xmin, &[]).await?.get(0);
    for event in [deletion, tombstone] {
        assert_eq!(
            (&*event.event_type, event.version, &event.xid),
            (USER_DELETED, 2, &xmin)
        );
    }
    assert_eq!(deletion.event_id, tombstone.event_id);
    assert_eq!(tombstone.state, None);
    let state = deletion.state.clone().context("the tombstone is first")?;
    let times = [state.create_time, state.update_time].map(|time| Some(proto::timestamp(time)));
    assert_eq!(times, [deleted.create_time, deleted.update_time]);
    let expected = events::User {
        user_id: ada.user_id.parse()?,
        email: String::new(),
        name: String::new(),
        version: 2,
        deleted: true,
        ..state.clone()
    };
    assert_eq!(state, expected);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_email_of_a_deleted_user_can_be_used_again() -> Result<()> {
    let service = TestService::start("free_again").await?;
    // More than once: deleted users do not conflict.
    for _ in 0..3 {
        let ada = service.user("ada").await?;
        service.delete(&ada).await?;
    }
    service.user("ada").await?;
    assert_eq!(service.sql.count(USERS).await?, 4);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_user_is_not_found_unless_allow_missing_is_set() -> Result<()> {
    let service = TestService::start("missing").await?;
    let ada = service.user("ada").await?;
    let deleted = service.delete(&ada).await?;
    let missing = Uuid::now_v7().to_string();
    for user_id in [&ada.user_id, &missing] {
        let rejected = service.delete_with(deletion(user_id)).await;
        let details = assert_rejected(rejected, Code::NotFound, "USER_NOT_FOUND");
        let resource = details.resource_info().context("no ResourceInfo")?;
        assert_eq!(&resource.resource_name, user_id);
    }
    // The etag of a deleted user is ignored.
    let delete_if_present = async |user_id: &str, etag: &str| {
        let request = DeleteUserRequest {
            allow_missing: true,
            etag: etag.to_owned(),
            ..deletion(user_id)
        };
        service.delete_with(request).await
    };
    for etag in ["", &ada.etag] {
        assert_eq!(
            delete_if_present(&missing, etag).await?,
            DeleteUserResponse::default()
        );
        let again = delete_if_present(&ada.user_id, etag).await?;
        let version = ConsistencyToken::decode(&again.consistency_token).map(|token| token.version);
        assert_eq!((again.user.as_ref(), version), (Some(&deleted), Ok(2)));
    }
    assert_eq!(service.sql.count(EVENTS).await?, 3);
    // An existing user is deleted.
    let bob = service.user("bob").await?;
    let gone = delete_if_present(&bob.user_id, "")
        .await?
        .user
        .context("no user")?;
    assert!(gone.delete_time.is_some());
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_deleted_only_if_the_etag_matches() -> Result<()> {
    let service = TestService::start("delete_etag").await?;
    let ada = service.user("ada").await?;
    let renamed = service.update(renaming(&ada, "Countess")).await?.user;
    let renamed = renamed.context("no user")?;
    let with_etag = async |etag: &str, allow_missing| {
        let request = DeleteUserRequest {
            etag: etag.to_owned(),
            allow_missing,
            ..deletion(&ada.user_id)
        };
        Ok::<_, Status>(service.delete_with(request).await?.user)
    };
    for etag in [&ada.etag, "garbage"] {
        for allow_missing in [false, true] {
            let rejected = with_etag(etag, allow_missing).await;
            assert_rejected(rejected, Code::Aborted, "ETAG_MISMATCH");
        }
    }
    assert_eq!(service.get(&ada.user_id).await?, renamed);
    assert_eq!(service.sql.count(EVENTS).await?, 2);
    let gone = with_etag(&renamed.etag, false).await?.context("no user")?;
    assert_eq!(gone.version, 3);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_deletion_gets_the_first_response() -> Result<()> {
    let service = TestService::start("delete_repeat").await?;
    let ada = service.user("ada").await?;
    // Of an existing user, and of a missing one, whose response is empty.
    for (user_id, allow_missing) in [
        (ada.user_id.clone(), false),
        (Uuid::now_v7().to_string(), true),
    ] {
        let request = DeleteUserRequest {
            request_id: Uuid::new_v4().to_string(),
            allow_missing,
            ..deletion(&user_id)
        };
        let first = service.delete_with(request.clone()).await?;
        assert_eq!(first.user.is_none(), allow_missing);
        for _ in 0..3 {
            assert_eq!(service.delete_with(request.clone()).await?, first);
        }
    }
    assert_eq!(service.sql.count(EVENTS).await?, 3);
    service.stop().await
}
