//! Calls that time out, are abandoned, too large or malformed, and calls during a database outage.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use devstack::WAIT_TIMEOUT;
use futures_util::{StreamExt as _, future::try_join_all, stream};
use prost::Message as _;
use proto::{
    events::USER_CREATED,
    user::v1::{CreateUserRequest, GetUserRequest},
};
use tokio::time::timeout;
use tonic::{Code, codec::CompressionEncoding};
use uuid::Uuid;

use crate::{
    harness::{CROWDED, EVENTS, TestService, USERS, assert_rejected, assert_rejection, request},
    wire::{rejected_call, rejected_call_with},
};

const CREATE_USER: &str = "/user.v1.UserService/CreateUser";

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_at_its_deadline_and_can_be_retried() -> Result<()> {
    let service = TestService::start("deadline").await?;
    let request = CreateUserRequest {
        request_id: Uuid::new_v4().to_string(),
        ..request("ada")
    };
    let lock = service.lock_users().await?;
    let message = request.encode_to_vec();
    let late = rejected_call(service.addr, CREATE_USER, Some("300m"), &message);
    let late = timeout(WAIT_TIMEOUT, late).await??;
    assert_rejection(&late, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    lock.release().await?;
    // Whether or not the late write took effect: now it has, exactly once.
    service.create_at_last(&request).await?;
    assert_eq!(service.sql.count(USERS).await?, 1);
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_deadline_ends_at_the_server_limit() -> Result<()> {
    let service = TestService::start_with("own_deadline", &["--max-deadline-ms=300"]).await?;
    let lock = service.lock_users().await?;
    let late = timeout(WAIT_TIMEOUT, service.create(request("ada"))).await?;
    assert_rejected(late, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    // A longer deadline of the caller has no effect.
    let message = request("ada").encode_to_vec();
    let late = rejected_call(service.addr, CREATE_USER, Some("1H"), &message);
    let late = timeout(WAIT_TIMEOUT, late).await??;
    assert_rejection(&late, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    lock.release().await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_caller_disconnects_completes() -> Result<()> {
    let service = TestService::start("left").await?;
    let lock = service.lock_users().await?;
    tokio::select! {
        result = service.create(request("ada")) => bail!("through the lock: {result:?}"),
        held = service.wait_for_held_calls(1) => held?,
    }
    // The select dropped the call, and tonic has notified the server.
    lock.release().await?;
    service.sql.wait_for(USERS, 1).await?;
    assert_eq!(service.sql.count(EVENTS).await?, 1);
    service.stop().await
}

/// Marsaglia's xorshift, with the same numbers in every run.
struct XorShift(u64);

impl XorShift {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_disconnecting_callers_leave_nothing_half_done() -> Result<()> {
    let service = TestService::start_with("leaving", CROWDED).await?;
    let user = async |n| service.create_at_last(&request(&format!("user{n}"))).await;
    try_join_all((0..16).map(user)).await?;
    let sessions = service.sessions().await?;

    let mut random = XorShift(0x2545_f491_4f6c_dd1d);
    let calls = (16..2_016).map(|n| {
        let patience = Duration::from_micros(random.below(50_000));
        let request = request(&format!("user{n}"));
        let call = service.create(request);
        async move { timeout(patience, call).await }
    });
    let results: Vec<_> = stream::iter(calls).buffer_unordered(40).collect().await;
    let answered = results.iter().filter(|r| matches!(r, Ok(Ok(_)))).count();

    // Below Postgres' own timeout for sessions idle in a transaction.
    let busy = "select count(*) from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid()
                  and state <> 'idle'";
    timeout(Duration::from_secs(10), service.sql.wait_for(busy, 0))
        .await
        .context("a transaction stayed open")??;
    // In one statement, because a call that waited for a connection may be about to commit.
    let without_one_other = format!(
        "select count(*) from users u
         where (select count(*) from outbox
                where key = u.user_id::text and event_type = '{USER_CREATED}') <> 1"
    );
    assert_eq!(service.sql.count(&without_one_other).await?, 0);
    let without_the_other = format!("select abs(({USERS}) - ({EVENTS}))");
    assert_eq!(service.sql.count(&without_the_other).await?, 0);
    let users = service.sql.count(USERS).await?;
    assert!(
        users > i64::try_from(answered)?,
        "no caller disconnected midway"
    );
    // An aborted transaction costs its connection.
    let now = service.sessions().await?;
    assert!(sessions.iter().all(|session| now.contains(session)));
    try_join_all((2_016..2_032).map(user)).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_rejected_as_too_large() -> Result<()> {
    let service = TestService::start("large").await?;
    let large = CreateUserRequest {
        name: "x".repeat(70_000),
        ..request("ada")
    };
    let result = service.create(large).await;
    assert_rejected(result, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_method_is_unimplemented() -> Result<()> {
    let service = TestService::start("method").await?;
    for path in [
        "/user.v1.UserService/Nothing",
        "/nobody.v1.Service/CreateUser",
    ] {
        let status = rejected_call(service.addr, path, None, &[]).await?;
        assert_rejection(&status, Code::Unimplemented, "UNIMPLEMENTED");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_can_be_compressed_and_the_server_advertises_how() -> Result<()> {
    let service = TestService::start("compressed").await?;
    let mut users = service.users().send_compressed(CompressionEncoding::Gzip);
    users.create_user(request("ada")).await?;
    // Small when compressed.
    let large = CreateUserRequest {
        name: "x".repeat(70_000),
        ..request("bob")
    };
    let result = users.create_user(large).await;
    assert_rejected(result, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let header = Some(("grpc-encoding", "snappy"));
    let message = request("bob").encode_to_vec();
    let status = rejected_call_with(service.addr, CREATE_USER, header, &message).await?;
    assert_rejection(&status, Code::Unimplemented, "UNIMPLEMENTED");
    assert!(status.message().contains("snappy"), "{status:?}");
    let accepted = status.metadata().get("grpc-accept-encoding");
    let accepted = accepted.context("no accepted encodings")?;
    assert!(accepted.to_str()?.contains("gzip"), "{accepted:?}");
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_bytes_are_an_invalid_argument() -> Result<()> {
    let service = TestService::start("bytes").await?;
    for bytes in [
        // A number in place of the e-mail, a truncated text, a text that is not UTF-8.
        &[0x08, 0x01][..],
        &[0x0a, 0x7f, b'a'],
        &[0x0a, 0x01, 0xff],
        &[0xff; 20],
    ] {
        let status = rejected_call(service.addr, CREATE_USER, None, bytes).await?;
        assert_rejection(&status, Code::InvalidArgument, "MALFORMED_MESSAGE");
    }
    assert_eq!(service.sql.count(USERS).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_outage_is_unavailable_with_a_retry_delay() -> Result<()> {
    let away = "--database-url=postgres://nobody@127.0.0.1:1/nothing";
    let service = TestService::start_with("away", &[away]).await?;
    let id = GetUserRequest {
        user_id: Uuid::now_v7().to_string(),
    };
    let status = service.users().get_user(id).await.expect_err("no database");
    let details = assert_rejection(&status, Code::Unavailable, "DATABASE_UNAVAILABLE");
    let retry = details.retry_info().context("no RetryInfo")?;
    assert_eq!(retry.retry_delay, Some(Duration::from_secs(1)));
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    assert_eq!(pushback.context("no pushback")?, "1000");
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_unavailable_with_a_retry_delay() -> Result<()> {
    let service = TestService::start("read_only").await?;
    service.make_read_only().await?;
    let rejected = service.create(request("ada")).await;
    let details = assert_rejected(rejected, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert!(details.retry_info().is_some());
    service.make_writable().await?;
    service.create_at_last(&request("ada")).await?;
    service.stop().await
}
