//! Conditions that stop a consumer permanently, and its shutdown.

use anyhow::{Context as _, Result, ensure};
use devstack::{Addresses, WAIT_TIMEOUT};
use projection::ConsumerState;

use crate::harness::{Setup, TOTAL};

/// Checks that a reason names the recovery command.
fn ensure_recreated(reason: &str) -> Result<()> {
    let names_command = reason.contains("`projection reset`");
    ensure!(
        reason.contains("was recreated") && names_command,
        "{reason}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_out_of_range_stops_the_consumer() -> Result<()> {
    let setup = Setup::new("recreated").await?;
    setup.count("a").await?;
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 1).await?;
    running.stop().await;
    setup
        .sql
        .batch_execute("update projection_offsets set next_offset = 1000")
        .await?;
    let running = setup.start();
    let mut state = running.consumer.state();
    let stopped = state.wait_for(|state| matches!(state, ConsumerState::Stopped(_)));
    tokio::time::timeout(WAIT_TIMEOUT, stopped)
        .await
        .context("not stopped")??;
    running.stop().await;
    setup.sql.wait_for(TOTAL, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_topic_stops_the_consumer_with_a_recovery_command() -> Result<()> {
    let setup = Setup::new("recreated_earlier").await?;
    let running = setup.start();
    for _ in 0..3 {
        setup.count("a").await?;
    }
    setup.sql.wait_for(TOTAL, 3).await?;
    setup.recreate_topic().await?;
    // Before the next offset, where it would never be consumed.
    setup.count("a").await?;
    let reason = running.wait_for_stop().await?;
    running.stop().await;
    setup.sql.wait_for(TOTAL, 3).await?;
    ensure_recreated(&reason)?;
    setup.reset().await?;
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 4).await?;
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_topic_is_detected_while_other_partitions_have_records() -> Result<()> {
    let setup = Setup::new("busy").await?;
    let running = setup.start();
    for _ in 0..3 {
        setup.count("a").await?;
    }
    setup.sql.wait_for(TOTAL, 3).await?;
    // Keys of other partitions: the partition of "a" must stay shorter than in the old topic.
    let of_a = "select max(next_offset) from projection_offsets";
    let (mut others, mut total) = (Vec::new(), 3);
    for key in ["b", "c", "d", "e", "f", "g", "h", "i"] {
        let before = setup.sql.count(of_a).await?;
        for _ in 0..2 {
            setup.count("a").await?;
        }
        setup.count(key).await?;
        total += 3;
        setup.sql.wait_for(TOTAL, total).await?;
        if setup.sql.count(of_a).await? == before + 2 {
            others.push(key);
        }
    }
    ensure!(!others.is_empty(), "all keys are in one partition");
    setup.recreate_topic().await?;
    let writing = async {
        loop {
            for key in &others {
                setup.count(key).await?;
            }
        }
    };
    tokio::select! {
        reason = running.wait_for_stop() => ensure_recreated(&reason?)?,
        result = writing => { let never: Result<()> = result; never? },
    }
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_sets_the_state_to_stopped() -> Result<()> {
    let setup = Setup::new("panics").await?;
    let running = setup.start();
    running
        .wait_for(|state| *state == ConsumerState::Running)
        .await?;
    Addresses::shared()
        .write_record(&setup.name, Some(b"a"), None, &[("ce_type", "panic")])
        .await?;
    let reason = running.wait_for_stop().await?;
    ensure!(reason.contains("panicked"), "{reason}");
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_with_an_invalid_configuration_shuts_down() -> Result<()> {
    let setup = Setup::new("unconfigured").await?;
    // An empty group name is invalid.
    let running = setup.start_as("");
    running
        .wait_for(|state| matches!(state, ConsumerState::Failing(_)))
        .await?;
    tokio::time::timeout(WAIT_TIMEOUT, running.stop())
        .await
        .context("not shut down")
}
