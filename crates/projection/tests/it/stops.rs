//! What stops a projection for good, loudly, and what ends it.

use anyhow::{Context as _, Result, ensure};
use devstack::{Addresses, PATIENCE, eventually};
use projection::State;

use crate::harness::{Setup, TOTAL};

/// Deletes a topic and makes one of the same name.
async fn recreate(topic: &str) -> Result<()> {
    let servers = Addresses::shared();
    servers.delete_topic(topic).await?;
    // A topic is gone some time after its deletion was answered.
    eventually("a new topic", async || {
        Ok(servers.create_topic(topic, 3).await.ok())
    })
    .await
}

/// The statement that a reason names as the way out.
fn way_out(reason: &str) -> Result<&str> {
    ensure!(reason.contains("deleted and made anew"), "{reason}");
    let statement = reason.split('"').nth(1);
    statement.with_context(|| format!("no way out in: {reason}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_the_topic_does_not_have_stops_the_projection() -> Result<()> {
    let setup = Setup::new("recreated").await?;
    setup.count("a").await?;
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 1).await?;
    running.stop().await;
    setup
        .sql
        .batch_execute("update projection_offsets set next_offset = 1000")
        .await?;
    let running = setup.follow();
    let mut state = running.following.state();
    let stopped = state.wait_for(|state| matches!(state, State::Stopped(_)));
    tokio::time::timeout(PATIENCE, stopped)
        .await
        .context("went on")??;
    running.stop().await;
    setup.sql.wait_for(TOTAL, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_recreated_stops_the_projection_which_names_the_way_out() -> Result<()> {
    let setup = Setup::new("anew").await?;
    let running = setup.follow();
    for _ in 0..3 {
        setup.count("a").await?;
    }
    setup.sql.wait_for(TOTAL, 3).await?;
    recreate(&setup.name).await?;
    // Before the offset that is next, where nobody would ever look for it.
    setup.count("a").await?;
    let reason = running.wait_for_stop().await?;
    running.stop().await;
    setup.sql.wait_for(TOTAL, 3).await?;
    setup.sql.batch_execute(way_out(&reason)?).await?;
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 4).await?;
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_recreated_is_noticed_while_other_partitions_have_records() -> Result<()> {
    let setup = Setup::new("busy").await?;
    let running = setup.follow();
    for _ in 0..3 {
        setup.count("a").await?;
    }
    setup.sql.wait_for(TOTAL, 3).await?;
    // Keys of other partitions: in that of "a" the new topic must not outgrow the old one.
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
    recreate(&setup.name).await?;
    let writing = async {
        loop {
            for key in &others {
                setup.count(key).await?;
            }
        }
    };
    tokio::select! {
        reason = running.wait_for_stop() => way_out(&reason?).map(drop)?,
        result = writing => { let never: Result<()> = result; never? },
    }
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_panics_says_that_it_stopped() -> Result<()> {
    let setup = Setup::new("panics").await?;
    let running = setup.follow();
    running.wait_for(|state| *state == State::Following).await?;
    Addresses::shared()
        .write_record(&setup.name, Some(b"a"), None, &[("ce_type", "panic")])
        .await?;
    let reason = running.wait_for_stop().await?;
    ensure!(reason.contains("panicked"), "{reason}");
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_can_not_be_configured_ends_when_it_is_asked_to() -> Result<()> {
    let setup = Setup::new("unconfigured").await?;
    // A consumer group has a name.
    let running = setup.follow_as("");
    running
        .wait_for(|state| matches!(state, State::Failing(_)))
        .await?;
    tokio::time::timeout(PATIENCE, running.stop())
        .await
        .context("it goes on")
}
