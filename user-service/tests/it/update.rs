//! UpdateUser changes the named fields, writes one version and one event per change, and loses no update.

use anyhow::{Context as _, Result};
use futures_util::future::{join_all, try_join_all};
use prost_types::FieldMask;
use proto::{
    Aggregate, ConsistencyToken,
    events::{self, USER_CREATED, USER_UPDATED},
    user::v1::{UpdateUserRequest, User},
};
use tonic::Code;
use uuid::Uuid;

use crate::harness::{CROWDED, EVENTS, TestService, assert_rejected, renaming, retry_call, update};

/// Returns Ada with another address and name.
fn both_changed(ada: &User) -> User {
    User {
        email: "countess@example.com".into(),
        name: "Countess".into(),
        ..ada.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_writes_one_version_and_one_event_with_the_new_state() -> Result<()> {
    let service = TestService::start("change").await?;
    let ada = service.user("ada").await?;
    let response = service.update(update(both_changed(&ada), &["*"])).await?;
    let user = response.user.context("a response without a user")?;
    assert_eq!(
        (user.email.as_str(), user.name.as_str(), user.version),
        ("countess@example.com", "Countess", 2)
    );
    assert_eq!(user.create_time, ada.create_time);
    assert_ne!(user.update_time, ada.update_time);
    assert_ne!(user.etag, ada.etag);
    assert_eq!(user.delete_time, None);
    let user_id: Uuid = user.user_id.parse()?;
    let token = ConsistencyToken {
        aggregate: Aggregate::User,
        id: user_id,
        version: 2,
    };
    assert_eq!(response.consistency_token, token.encode());
    assert_eq!(service.get(&ada.user_id).await?, user);

    let written = service.events_of(&ada.user_id).await?;
    let [_, event] = &written[..] else {
        panic!("not one event for each version: {written:?}");
    };
    let row = "select xmin::text, email_key from users";
    let row = service.sql.query_one(row, &[]).await?;
    assert_eq!(
        (event.event_type.as_str(), event.version, &*event.xid),
        (USER_UPDATED, 2, row.get(0))
    );
    assert_eq!(row.get::<_, &str>(1), "countess@example.com");
    let state = event.state.clone().context("a tombstone")?;
    assert_eq!(Some(proto::timestamp(state.create_time)), user.create_time);
    assert_eq!(Some(proto::timestamp(state.update_time)), user.update_time);
    let expected = events::User {
        user_id,
        email: user.email,
        name: user.name,
        version: 2,
        deleted: false,
        ..state.clone()
    };
    assert_eq!(state, expected);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_fields_of_the_mask_change() -> Result<()> {
    let service = TestService::start("mask").await?;
    // Each mask with whether the e-mail and the name change.
    for (n, (paths, changes)) in [
        (&["name"][..], (false, true)),
        (&["email"], (true, false)),
        (&["email", "name", "name"], (true, true)),
        (&["name", "*"], (true, true)),
        (&["*"], (true, true)),
    ]
    .into_iter()
    .enumerate()
    {
        let before = service.user(&format!("before{n}")).await?;
        let asked = User {
            email: format!("after{n}@example.com"),
            name: format!("after{n}"),
            ..before.clone()
        };
        let user = service.update(update(asked.clone(), paths)).await?.user;
        let user = user.context("a response without a user")?;
        let email = if changes.0 { &asked } else { &before }.email.as_str();
        let name = if changes.1 { &asked } else { &before }.name.as_str();
        assert_eq!((&*user.email, &*user.name), (email, name), "{paths:?}");
        assert_eq!(service.get(&before.user_id).await?, user, "{paths:?}");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mask_the_fields_that_are_not_empty_change() -> Result<()> {
    let service = TestService::start("no_mask").await?;
    for (n, mask) in [None, Some(FieldMask::default())].into_iter().enumerate() {
        let before = service.user(&format!("before{n}")).await?;
        let asked = UpdateUserRequest {
            update_mask: mask,
            ..renaming(&before, "After")
        };
        let user = service.update(asked).await?.user.context("no user")?;
        assert_eq!((&user.email, &*user.name), (&before.email, "After"));
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_or_empty_mask_is_reported_by_its_field() -> Result<()> {
    let service = TestService::start("bad_mask").await?;
    let ada = service.user("ada").await?;
    let nothing_named = UpdateUserRequest {
        update_mask: None,
        ..renaming(&ada, "")
    };
    let nobody = UpdateUserRequest {
        user: None,
        ..renaming(&ada, "")
    };
    let no_id = User {
        user_id: "1".into(),
        email: "x".into(),
        ..User::default()
    };
    let all_wrong = UpdateUserRequest {
        request_id: "1".into(),
        ..update(no_id, &["*"])
    };
    for (request, fields) in [
        // A typo, an output-only field, a missing field; paths are case-sensitive.
        (update(both_changed(&ada), &["nmae"]), &["update_mask"][..]),
        (update(both_changed(&ada), &["user_id"]), &["update_mask"]),
        (
            update(both_changed(&ada), &["name", "version"]),
            &["update_mask"],
        ),
        (update(both_changed(&ada), &["user.name"]), &["update_mask"]),
        (
            update(both_changed(&ada), &["Name", "etag"]),
            &["update_mask"],
        ),
        (update(both_changed(&ada), &[""]), &["update_mask"]),
        (nothing_named, &["update_mask"]),
        (nobody, &["user"]),
        // Named in the mask but empty, which is not a valid value.
        (renaming(&ada, " "), &["user.name"]),
        (
            all_wrong,
            &["request_id", "user.user_id", "user.email", "user.name"],
        ),
    ] {
        let rejected = service.update(request).await;
        let details = assert_rejected(rejected, Code::InvalidArgument, "VALIDATION_FAILED");
        let violations = details.bad_request().context("no BadRequest")?;
        let violations = &violations.field_violations;
        let named: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(named, fields);
    }
    assert_eq!(service.get(&ada.user_id).await?, ada);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_without_a_change_writes_no_version_and_no_event() -> Result<()> {
    let service = TestService::start("no_change").await?;
    let ada = service.user("ada").await?;
    let padded = User {
        name: " ada ".into(),
        ..ada.clone()
    };
    for request in [
        update(ada.clone(), &["*"]),
        update(padded, &["name"]),
        renaming(&ada, "ada"),
    ] {
        let response = service.update(request).await?;
        assert_eq!(response.user.as_ref(), Some(&ada));
        let token = ConsistencyToken::decode(&response.consistency_token);
        assert_eq!(token.map(|token| token.version), Ok(1));
    }
    assert_eq!(service.get(&ada.user_id).await?, ada);
    let written = service.events_of(&ada.user_id).await?;
    assert_eq!(written.len(), 1);
    assert_eq!(written[0].event_type, USER_CREATED);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_users_email_is_taken_in_any_case_and_ones_own_is_not() -> Result<()> {
    let service = TestService::start("update_taken").await?;
    let (ada, bob) = (service.user("ada").await?, service.user("bob").await?);
    let with_email = |email: &str| {
        let user = User {
            email: email.to_owned(),
            ..ada.clone()
        };
        update(user, &["email"])
    };
    for email in ["bob@example.com", "BOB@Example.Com"] {
        let rejected = service.update(with_email(email)).await;
        let details = assert_rejected(rejected, Code::AlreadyExists, "EMAIL_TAKEN");
        let resource = details.resource_info().context("no ResourceInfo")?;
        assert_eq!(resource.resource_name, "");
    }
    assert_eq!(service.get(&ada.user_id).await?, ada);
    let own = service.update(with_email("Ada@Example.com")).await?;
    let own = own.user.context("no user")?;
    assert_eq!((own.email.as_str(), own.version), ("Ada@Example.com", 2));
    // The released address is free, the new one is taken.
    let moved = User {
        email: "countess@example.com".into(),
        ..own
    };
    service.update(update(moved, &["email"])).await?;
    let taking = User {
        email: "ada@example.com".into(),
        ..bob
    };
    service.update(update(taking, &["email"])).await?;
    assert_eq!(service.sql.count(EVENTS).await?, 5);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outdated_etag_is_rejected() -> Result<()> {
    let service = TestService::start("etag").await?;
    let ada = service.user("ada").await?;
    let changed = service.update(update(both_changed(&ada), &["*"])).await?;
    let changed = changed.user.context("no user")?;
    for etag in [&ada.etag, "garbage", "v3", "v02", " "] {
        // Also for an update without a change.
        for name in ["Another", &changed.name] {
            let stale = User {
                etag: etag.into(),
                name: name.into(),
                ..changed.clone()
            };
            let rejected = service.update(update(stale, &["name"])).await;
            assert_rejected(rejected, Code::Aborted, "ETAG_MISMATCH");
        }
    }
    assert_eq!(service.get(&ada.user_id).await?, changed);
    assert_eq!(service.sql.count(EVENTS).await?, 2);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_deleted_user_cannot_be_updated() -> Result<()> {
    let service = TestService::start("gone").await?;
    let ada = service.user("ada").await?;
    let deleted = service.delete(&ada).await?;
    // The etag is ignored.
    for request in [
        renaming(&ada, "Ada"),
        update(both_changed(&ada), &["*"]),
        update(both_changed(&deleted), &["*"]),
    ] {
        let rejected = service.update(request).await;
        let details = assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
        let failure = details.precondition_failure().context("no failure")?;
        let [violation] = &failure.violations[..] else {
            panic!("not one violation: {failure:?}");
        };
        assert_eq!(
            (&*violation.r#type, &violation.subject),
            ("USER_LIVE", &format!("users/{}", ada.user_id))
        );
    }
    assert_eq!(service.get(&ada.user_id).await?, deleted);

    let nobody = User {
        user_id: Uuid::now_v7().to_string(),
        ..ada
    };
    let rejected = service.update(renaming(&nobody, "Nobody")).await;
    let details = assert_rejected(rejected, Code::NotFound, "USER_NOT_FOUND");
    let resource = details.resource_info().context("no ResourceInfo")?;
    assert_eq!(
        (&*resource.resource_type, &resource.resource_name),
        ("user.v1.User", &nobody.user_id)
    );
    assert!(service.events_of(&nobody.user_id).await?.is_empty());
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_many_updates_with_the_same_etag_succeeds() -> Result<()> {
    let service = TestService::start_with("one_etag", CROWDED).await?;
    let ada = service.user("ada").await?;
    let changes = (0..32).map(async |n| {
        let user = User {
            name: format!("Ada {n}"),
            ..ada.clone()
        };
        let request = update(user, &["name"]);
        retry_call(async || service.update(request.clone()).await).await
    });
    let (updated, rejected): (Vec<_>, Vec<_>) =
        join_all(changes).await.into_iter().partition(Result::is_ok);
    assert_eq!((updated.len(), rejected.len()), (1, 31));
    for rejected in rejected {
        assert_rejected(rejected, Code::Aborted, "ETAG_MISMATCH");
    }
    for updated in updated {
        let user = updated?.user.context("no user")?;
        assert_eq!(user.version, 2);
        assert_eq!(service.get(&ada.user_id).await?, user);
    }
    assert_eq!(service.events_of(&ada.user_id).await?.len(), 2);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_updates_without_an_etag_all_succeed_with_one_event_each() -> Result<()> {
    let service = TestService::start_with("at_once", CROWDED).await?;
    let ada = service.user("ada").await?;
    let changes = (0..32).map(async |n| {
        let request = renaming(&ada, &format!("Ada {n}"));
        let response = retry_call(async || service.update(request.clone()).await).await?;
        response.user.context("no user")
    });
    let mut updated = try_join_all(changes).await?;
    updated.sort_by_key(|user| user.version);
    let versions: Vec<i64> = updated.iter().map(|user| user.version).collect();
    assert_eq!(versions, Vec::from_iter(2..=33));
    assert_eq!(service.get(&ada.user_id).await?, updated[31]);
    // Written in version order, each with the state of its response.
    let mut states = service.events_of(&ada.user_id).await?;
    let states: Vec<_> = states.drain(1..).map(|event| event.state).collect();
    let states: Vec<_> = states.into_iter().flatten().collect();
    let states: Vec<_> = states
        .iter()
        .map(|state| (state.version, &state.name))
        .collect();
    let responses: Vec<_> = updated
        .iter()
        .map(|user| (user.version, &user.name))
        .collect();
    assert_eq!(states, responses);
    service.stop().await
}
