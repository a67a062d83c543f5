//! Who may order: an order is checked against what was heard of its user.

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
async fn an_unknown_user_is_rejected_with_a_hint_that_it_may_pass() -> Result<()> {
    for wait in ["--unknown-user-wait-ms=0", "--unknown-user-wait-ms=100"] {
        let service = TestService::start_with("unknown", &[wait]).await?;
        let user_id = Uuid::now_v7();
        let status = service.create(request(user_id)).await;
        let status = status.expect_err("nobody knows this user");
        let details = assert_rejection(&status, Code::FailedPrecondition, "USER_UNKNOWN");
        let conditions = details.precondition_failure().context("no condition")?;
        let condition = &conditions.violations[0];
        assert_eq!(condition.r#type, "USER_KNOWN");
        assert_eq!(condition.subject, format!("users/{user_id}"));
        let retry = details.retry_info().context("no RetryInfo")?;
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(250)));
        // Who retries by himself must not do so for this code.
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms"), None);
        assert_eq!(service.sql.count(ORDERS).await?, 0);
        service.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_arrives_during_the_short_wait_can_order() -> Result<()> {
    let service = TestService::start_with("arrives", &WAIT_LONG).await?;
    let user = user();
    let arriving = async {
        service.wait_for_waiting_call().await?;
        service.tell(&user).await
    };
    let (created, arrived) = tokio::join!(service.create(request(user.user_id)), arriving);
    arrived?;
    created?;
    assert_eq!(service.sql.count(ORDERS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_can_not_order_and_a_retry_would_not_help() -> Result<()> {
    let service = TestService::start("deleted").await?;
    let user = service.known_user().await?;
    service.order(&user).await?;
    let deleted = deleted_version(&user);
    service.tell(&deleted).await?;
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
async fn a_stale_record_does_not_bring_a_deleted_user_back() -> Result<()> {
    let service = TestService::start("stale").await?;
    let first = service.known_user().await?;
    let second = next_version(&first);
    let deleted = deleted_version(&second);
    for record in [&second, &deleted, &second, &first, &deleted, &first] {
        service.tell(record).await?;
    }
    service.wait_until_seen(7).await?;
    let rejected = service.create(request(first.user_id)).await;
    assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
    // Of a deleted user nothing is kept that says who it was.
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
async fn records_that_can_not_be_applied_go_aside_and_later_ones_are_heard() -> Result<()> {
    let service = TestService::start("poison").await?;
    let user = user();
    // All with the key of the user, so that they are in its partition and before it.
    let key = user.user_id.to_string();
    let mut other_id = user.clone();
    other_id.user_id = Uuid::nil();
    // JSON can hold this character, and Postgres can't.
    let mut zero = user.clone();
    zero.name = "A\0da".into();
    let poison = [
        ("payload", String::from("{}")),
        ("payload", String::from("no JSON")),
        // What serde says of it holds it.
        ("payload", String::from(r#"{"user_id":"secret\u0000"}"#)),
        ("key", serde_json::to_string(&other_id)?),
        ("payload", serde_json::to_string(&zero)?),
    ];
    for (_, payload) in &poison {
        service.write(&key, payload.as_bytes()).await?;
    }
    service.tell(&user).await?;
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
    let told = "select count(*) from dead_letters where error like '%secret%'";
    assert_eq!(service.sql.count(told).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_no_events_of_users_go_aside_and_unknown_types_are_passed_over()
-> Result<()> {
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
        // No fault: something that this version does not know.
        (
            &b"something new"[..],
            &[spec, (header::TYPE, "user_praised")],
        ),
    ] {
        service.write_with(&key, payload, headers).await?;
    }
    service.tell(&user).await?;
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
async fn a_tombstone_tells_of_a_deletion_when_nothing_else_does() -> Result<()> {
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
