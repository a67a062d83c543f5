//! Validation of the user of an order against `users_cache`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use proto::events::{USER_CREATED, header};
use tonic::Code;
use uuid::Uuid;

use crate::harness::{
    ORDERS, TestService, WAIT_LONG, assert_rejected, assert_rejection, deleted_version,
    next_version, request, user,
};

const DEAD: &str = "select count(*) from dead_letters";

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_user_is_rejected_with_a_retry_delay() -> Result<()> {
    for wait in ["--unknown-user-wait-ms=0", "--unknown-user-wait-ms=100"] {
        let service = TestService::start_with("unknown", &[wait]).await?;
        let user_id = Uuid::now_v7();
        let status = service.create(request(user_id)).await;
        let status = status.expect_err("the user is unknown");
        let details = assert_rejection(&status, Code::FailedPrecondition, "USER_UNKNOWN");
        let conditions = details.precondition_failure().context("no condition")?;
        let condition = &conditions.violations[0];
        assert_eq!(condition.r#type, "USER_KNOWN");
        assert_eq!(condition.subject, format!("users/{user_id}"));
        let retry = details.retry_info().context("no RetryInfo")?;
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(250)));
        // Client retry policies must not retry this code.
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms"), None);
        assert_eq!(service.sql.count(ORDERS).await?, 0);
        service.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_arrives_during_the_short_wait_can_order() -> Result<()> {
    let service = TestService::start_with("arrives", &WAIT_LONG).await?;
    let user = user();
    let arriving = async {
        service.wait_for_waiting_call().await?;
        service.publish_user(&user).await
    };
    let (created, arrived) = tokio::join!(service.create(request(user.user_id)), arriving);
    arrived?;
    created?;
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_cannot_order_and_gets_no_retry_delay() -> Result<()> {
    let service = TestService::start("deleted").await?;
    let user = service.known_user().await?;
    service.order(&user).await?;
    let deleted = deleted_version(&user);
    service.publish_user(&deleted).await?;
    service.wait_for_version(&deleted).await?;
    let rejected = service.create(request(user.user_id)).await;
    let details = assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
    let conditions = details.precondition_failure().context("no condition")?;
    let condition = &conditions.violations[0];
    assert_eq!(condition.r#type, "USER_LIVE");
    assert_eq!(condition.subject, format!("users/{}", user.user_id));
    assert!(details.retry_info().is_none());
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_record_does_not_restore_a_deleted_user() -> Result<()> {
    let service = TestService::start("stale").await?;
    let first = service.known_user().await?;
    let second = next_version(&first);
    let deleted = deleted_version(&second);
    for record in [&second, &deleted, &second, &first, &deleted, &first] {
        service.publish_user(record).await?;
    }
    service.wait_until_processed(7).await?;
    let rejected = service.create(request(first.user_id)).await;
    assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
    // A deleted user keeps no personal data.
    let kept = "select count(*) from users_cache
                where version = 3 and deleted and email is null and name is null";
    assert_eq!(service.sql.count(kept).await?, 1);
    assert_eq!(
        service
            .sql
            .count("select count(*) from users_cache")
            .await?,
        1
    );
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_records_are_dead_lettered_and_later_ones_applied() -> Result<()> {
    let service = TestService::start("poison").await?;
    let user = user();
    // All with the user's key, to be in its partition and before it.
    let key = user.user_id.to_string();
    let mut other_id = user.clone();
    other_id.user_id = Uuid::nil();
    // JSON allows this character, and Postgres does not.
    let mut zero = user.clone();
    zero.name = "A\0da".into();
    let poison = [
        ("payload", String::from("{}")),
        ("payload", String::from("no JSON")),
        // serde's error message would contain the value.
        ("payload", String::from(r#"{"user_id":"secret\u0000"}"#)),
        ("key", serde_json::to_string(&other_id)?),
        ("payload", serde_json::to_string(&zero)?),
    ];
    for (_, payload) in &poison {
        service.write(&key, payload.as_bytes()).await?;
    }
    service.publish_user(&user).await?;
    service.wait_for_version(&user).await?;
    service.order(&user).await?;
    assert_eq!(service.sql.count(DEAD).await?, 5);
    let dead_letters = "select error_class, convert_from(payload, 'UTF8') from dead_letters
                   order by record_offset";
    let dead_letters = service.sql.query(dead_letters, &[]).await?;
    let dead_letters: Vec<_> = dead_letters
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(dead_letters, poison);
    let leaked = "select count(*) from dead_letters where error like '%secret%'";
    assert_eq!(service.sql.count(leaked).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_not_user_events_are_dead_lettered_and_unknown_types_skipped() -> Result<()>
{
    let service = TestService::start("strangers").await?;
    let (user, mut impossible) = (user(), user());
    let key = user.user_id.to_string();
    impossible.user_id = user.user_id;
    impossible.version = 0;
    let (good, impossible) = (serde_json::to_vec(&user)?, serde_json::to_vec(&impossible)?);
    let created = (header::TYPE, USER_CREATED);
    let spec = (header::SPEC_VERSION, "1.0");
    for (payload, headers) in [
        (&b"\x00\xff random bytes"[..], &[][..]),
        (&good, &[spec]),
        (&good, &[created]),
        (&good, &[(header::SPEC_VERSION, "2.0"), created]),
        (&impossible, &[spec, created]),
        // Not poison: a type that this version does not know.
        (
            &b"something new"[..],
            &[spec, (header::TYPE, "user_praised")],
        ),
    ] {
        service.write_with(&key, payload, headers).await?;
    }
    service.publish_user(&user).await?;
    service.wait_for_version(&user).await?;
    service.order(&user).await?;
    let dead_letters = "select error_class from dead_letters order by record_offset";
    let dead_letters = service.sql.query(dead_letters, &[]).await?;
    let classes: Vec<String> = dead_letters.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        classes,
        ["header", "header", "header", "version", "payload"]
    );
    let skipped = "select sum(skipped)::bigint from projection_offsets";
    assert_eq!(service.sql.count(skipped).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_alone_deletes_the_user() -> Result<()> {
    let service = TestService::start("tombstone").await?;
    let user = service.known_user().await?;
    service.order(&user).await?;
    service.write_tombstone(&user, user.version + 1).await?;
    service.wait_for_version(&deleted_version(&user)).await?;
    let rejected = service.create(request(user.user_id)).await;
    assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
    let open = "select count(*) from orders where state = 'created'";
    assert_eq!(service.sql.count(open).await?, 0);
    service.stop().await
}
