//! Permissions that are revoked while the consumer runs.

use anyhow::{Context as _, Result, ensure};
use devstack::WAIT_TIMEOUT;
use projection::ConsumerState;

use crate::{
    acl::{allow_reading, deny_reading},
    broker::TestBroker,
    harness::{Running, Setup, TOTAL},
};

/// Metadata can still be read without the permission to read records. Longer than several checks of it.
const METADATA_CHECKS: std::time::Duration = std::time::Duration::from_secs(8);

/// Checks that the consumer does not report that it is running.
async fn stays_failing(running: &Running) -> Result<()> {
    let mut state = running.consumer.state();
    let recovered = state.wait_for(|state| *state == ConsumerState::Running);
    let recovered = tokio::time::timeout(METADATA_CHECKS, recovered).await;
    ensure!(recovered.is_err(), "running without permission to read");
    Ok(())
}

async fn revoke_and_grant(broker: &TestBroker, setup: &Setup, running: &Running) -> Result<()> {
    let address = broker.kafka.brokers();
    deny_reading(address, &setup.name).await?;
    running.wait_for_failure("authorization").await?;
    stays_failing(running).await?;
    allow_reading(address, &setup.name).await?;
    let recovered = running.wait_until_running();
    recovered.await.context("after the permission was granted")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_may_not_read_is_failing_until_it_reads_again() -> Result<()> {
    let broker = TestBroker::start().await?;
    let setup = broker.setup("denied").await?;
    setup.count("a").await?;
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 1).await?;
    running.wait_until_running().await?;
    // Idle.
    revoke_and_grant(&broker, &setup, &running).await?;
    // While records are written.
    let writing = async {
        loop {
            setup.count("a").await?;
        }
    };
    tokio::select! {
        result = revoke_and_grant(&broker, &setup, &running) => result?,
        result = writing => { let never: Result<()> = result; never? },
    }
    let written = setup.servers.read_topic(&setup.name).await?.len();
    setup.sql.wait_for(TOTAL, i64::try_from(written)?).await?;
    tokio::time::timeout(WAIT_TIMEOUT, running.stop()).await?;
    Ok(())
}
