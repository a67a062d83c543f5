//! Membership in the consumer group: its session, and how it ends.

use std::time::Duration;

use anyhow::{Result, ensure};
use devstack::{Addresses, eventually};
use projection::ConsumerConfig;

use crate::harness::{Running, Setup, TOTAL};

/// Much longer than a test waits: only a member that leaves the group hands its partitions over in time.
const LONG_SESSION: Duration = Duration::from_secs(300);
/// Keys in all partitions.
const KEYS: i64 = 12;

fn start(setup: &Setup, instance_id: Option<&str>, session_timeout: Duration) -> Running {
    setup.start_with_config(ConsumerConfig {
        session_timeout,
        ..setup.config(instance_id)
    })
}

async fn wait_for_members(setup: &Setup, members: usize) -> Result<()> {
    eventually("assigned members", async || {
        let assigned = Addresses::shared()
            .count_assigned_members(&setup.name)
            .await?;
        Ok((assigned == members).then_some(()))
    })
    .await
}

async fn write_to_all_partitions(setup: &Setup) -> Result<()> {
    for key in 0..KEYS {
        setup.count(&format!("k{key}")).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_hands_the_partitions_over_at_once() -> Result<()> {
    let setup = Setup::new("leaves").await?;
    let [leaving, staying] = [(); 2].map(|()| start(&setup, None, LONG_SESSION));
    wait_for_members(&setup, 2).await?;
    leaving.stop().await;
    write_to_all_partitions(&setup).await?;
    setup.sql.wait_for(TOTAL, KEYS).await?;
    staying.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_gets_its_partitions_back_after_a_restart() -> Result<()> {
    let setup = Setup::new("returns").await?;
    let [returning, staying] = ["a", "b"].map(|id| start(&setup, Some(id), LONG_SESSION));
    wait_for_members(&setup, 2).await?;
    returning.stop().await;
    // Still a member, as KIP-345 defines it.
    wait_for_members(&setup, 2).await?;
    let returned = start(&setup, Some("a"), LONG_SESSION);
    write_to_all_partitions(&setup).await?;
    setup.sql.wait_for(TOTAL, KEYS).await?;
    returned.stop().await;
    staying.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_timeout_that_brokers_reject_stops_the_consumer_with_the_setting() -> Result<()> {
    let setup = Setup::new("too_short").await?;
    let running = start(&setup, None, Duration::from_secs(1));
    let reason = running.wait_for_stop().await?;
    running.stop().await;
    for part in [
        "1000 ms",
        "SESSION_TIMEOUT_MS",
        "group.min.session.timeout.ms",
    ] {
        ensure!(reason.contains(part), "{reason}");
    }
    Ok(())
}
