//! Servers that stop responding without closing connections.

use std::time::Duration;

use anyhow::{Context as _, Result};
use devstack::{Fault, Proxy};

use crate::{
    broker::TestBroker,
    harness::{Running, Setup, TOTAL},
};

/// The limit for health to report a server that does not respond.
const REPORT_LIMIT: Duration = Duration::from_secs(30);
/// The limit for a shutdown.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

async fn reports(running: &Running, reason: &str) -> Result<()> {
    let reporting = tokio::time::timeout(REPORT_LIMIT, running.wait_for_failure(reason));
    reporting.await.context("not reported in time")?.map(drop)
}

async fn stops(running: Running) -> Result<()> {
    let stopping = tokio::time::timeout(SHUTDOWN_LIMIT, running.stop());
    stopping.await.context("not stopped in time")
}

/// Starts a consumer that has applied one record.
async fn start(setup: &Setup) -> Result<Running> {
    setup.count("a").await?;
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 1).await?;
    running.wait_until_running().await?;
    Ok(running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_kafka_is_reported_and_does_not_delay_the_shutdown() -> Result<()> {
    let broker = TestBroker::start().await?;
    let setup = broker.setup("silent_kafka").await?;
    let running = start(&setup).await?;
    broker.proxy.set(Fault::Silence).await?;
    reports(&running, "Kafka").await?;
    broker.proxy.set(Fault::None).await?;
    running.wait_until_running().await?;
    // As after a failover of its address: open connections never respond again.
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 2).await?;
    broker.proxy.silence_open_connections();
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 3).await?;
    running.wait_until_running().await?;
    broker.proxy.set(Fault::Silence).await?;
    stops(running).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_database_is_reported_and_replaced_connections_recover() -> Result<()> {
    let setup = Setup::new("silent_database").await?;
    let proxy = Proxy::start_for(&setup.url).await?;
    let url = proxy.url(&setup.url)?;
    let setup = setup.applying_to(&url)?;
    let running = start(&setup).await?;
    proxy.silence_open_connections();
    setup.count("a").await?;
    reports(&running, "database").await?;
    setup.sql.wait_for(TOTAL, 2).await?;
    running.wait_until_running().await?;
    proxy.set(Fault::Silence).await?;
    setup.count("a").await?;
    reports(&running, "database").await?;
    stops(running).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_waits_for_a_lock_is_reported() -> Result<()> {
    let setup = Setup::new("locked").await?;
    let running = start(&setup).await?;
    let other = setup.connect_sql().await?;
    let lock = "begin; select from projection_offsets for update";
    other.batch_execute(lock).await?;
    setup.count("a").await?;
    reports(&running, "database").await?;
    other.batch_execute("commit").await?;
    setup.sql.wait_for(TOTAL, 2).await?;
    running.wait_until_running().await?;
    other.batch_execute(lock).await?;
    setup.count("a").await?;
    reports(&running, "database").await?;
    stops(running).await
}
