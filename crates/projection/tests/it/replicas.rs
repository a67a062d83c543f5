//! Several consumers of one projection.

use anyhow::Result;

use crate::harness::{Setup, TOTAL};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_partitions_is_running() -> Result<()> {
    let setup = Setup::with_partitions("spare", 1).await?;
    let first = setup.start_replica("first");
    first.wait_until_running().await?;
    let second = setup.start_replica("second");
    second.wait_until_running().await?;
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 1).await?;
    first.wait_until_running().await?;
    second.wait_until_running().await?;
    first.stop().await;
    // It gets the partition.
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 2).await?;
    second.stop().await;
    Ok(())
}
