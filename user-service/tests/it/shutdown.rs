//! The end of a server, which cuts off nobody who still has time.

use std::time::Duration;

use anyhow::{Result, bail};
use devstack::{Sql, eventually};
use tokio::net::TcpStream;

use crate::harness::{TestService, USERS, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_flight_is_answered_after_the_end_was_asked_for() -> Result<()> {
    let service = TestService::start("drain").await?;
    let lock = service.lock_users().await?;
    let ending = async {
        service.wait_for_held_calls(1).await?;
        service.shutdown.cancel();
        // Nobody new is let in ...
        eventually("a closed port", async || {
            Ok(TcpStream::connect(service.addr).await.err().map(drop))
        })
        .await?;
        // ... and when a server without calls would long have ended, this one goes on.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!service.has_ended(), "it did not wait for the call");
        lock.release().await
    };
    let (created, ended) = tokio::join!(service.create(request("ada")), ending);
    ended?;
    created?;
    let written = "select count(*) from users, outbox where key = user_id::text";
    assert_eq!(service.sql.count(written).await?, 1);
    service.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_end_holds_the_server_for_the_drain_timeout_only() -> Result<()> {
    let service = TestService::start_with("drained", &["--drain-timeout-ms=100"]).await?;
    let lock = service.lock_users().await?;
    let mut users = service.users();
    let call = tokio::spawn(async move { users.create_user(request("ada")).await });
    service.wait_for_held_calls(1).await?;
    service.stop().await?;
    if call.is_finished() {
        bail!("the lock did not hold the call: {:?}", call.await?);
    }
    lock.release().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_caller_has_left_is_finished_before_the_end() -> Result<()> {
    let service = TestService::start("drain_left").await?;
    let sql = Sql::connect(&service.database_url).await?;
    let lock = service.lock_users().await?;
    tokio::select! {
        result = service.create(request("ada")) => bail!("through the lock: {result:?}"),
        held = service.wait_for_held_calls(1) => held?,
    }
    // The call was dropped with the select, so that no connection has one in flight.
    service.shutdown.cancel();
    // When a server without calls would long have ended, this one waits for the write.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!service.has_ended(), "it did not wait for the write");
    lock.release().await?;
    service.ended().await?;
    assert_eq!(sql.count(USERS).await?, 1);
    Ok(())
}
