//! A topic that was recreated under the same name.

use anyhow::{Result, ensure};

use crate::harness::{Setup, TOTAL};

const KNOWN_IDS: &str = "select count(distinct topic_id) from projection_offsets";

/// Applies this many records of one key.
async fn apply(setup: &Setup, records: i64) -> Result<()> {
    let running = setup.apply_all(records, 1).await?;
    running.stop().await;
    Ok(())
}

/// Writes this many records of one key.
async fn write(setup: &Setup, records: i64) -> Result<()> {
    for _ in 0..records {
        setup.count("k0").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_topic_that_is_longer_than_before_is_detected_at_the_start() -> Result<()> {
    let setup = Setup::new("longer").await?;
    apply(&setup, 3).await?;
    setup.recreate_topic().await?;
    write(&setup, 5).await?;
    let running = setup.start();
    let reason = running.wait_for_stop().await?;
    ensure!(reason.contains("was recreated: its id is"), "{reason}");
    running.stop().await;
    setup.sql.wait_for(TOTAL, 3).await?;
    setup.reset().await?;
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 8).await?;
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_recreated_at_its_beginning_stops_a_running_consumer() -> Result<()> {
    let setup = Setup::new("empty").await?;
    // Every offset is 0, so no offset shows that the topic is another one.
    let running = setup.start();
    running.wait_until_running().await?;
    setup.recreate_topic().await?;
    let reason = running.wait_for_stop().await?;
    ensure!(reason.contains("was recreated: its id is"), "{reason}");
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_without_a_topic_id_adopt_the_current_one() -> Result<()> {
    let setup = Setup::new("adopted").await?;
    apply(&setup, 3).await?;
    // As a service of version 0.2 stored them.
    let forget =
        "update projection_offsets set topic_id = null, leader_epoch = null, epoch_offset = null";
    setup.sql.batch_execute(forget).await?;
    let running = setup.start();
    running.wait_until_running().await?;
    setup.sql.wait_for(KNOWN_IDS, 1).await?;
    running.stop().await;
    Ok(())
}
