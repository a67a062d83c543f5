//! Shutdown: calls and writes in flight complete within the drain timeout.

use std::time::Duration;

use anyhow::{Result, bail};
use devstack::{Sql, eventually};
use tokio::net::TcpStream;

use crate::harness::{TestService, USERS, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_flight_completes_after_the_shutdown_signal() -> Result<()> {
    let service = TestService::start("drain").await?;
    let lock = service.lock_users().await?;
    let ending = async {
        service.wait_for_held_calls(1).await?;
        service.shutdown.cancel();
        // New connections are refused ...
        eventually("a closed port", async || {
            Ok(TcpStream::connect(service.addr).await.err().map(drop))
        })
        .await?;
        // ... and the server still waits when a server without calls would have stopped.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(
            !service.has_ended(),
            "the server stopped before the call completed"
        );
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
async fn a_stuck_call_delays_shutdown_only_for_the_drain_timeout() -> Result<()> {
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
async fn a_write_whose_caller_disconnected_completes_before_shutdown() -> Result<()> {
    let service = TestService::start("drain_left").await?;
    let sql = Sql::connect(&service.database_url).await?;
    let lock = service.lock_users().await?;
    tokio::select! {
        result = service.create(request("ada")) => bail!("through the lock: {result:?}"),
        held = service.wait_for_held_calls(1) => held?,
    }
    // The select dropped the call, so that no connection has a call in flight.
    service.shutdown.cancel();
    // The server waits for the write when a server without calls would have stopped.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        !service.has_ended(),
        "the server stopped before the write completed"
    );
    lock.release().await?;
    service.ended().await?;
    assert_eq!(sql.count(USERS).await?, 1);
    Ok(())
}
