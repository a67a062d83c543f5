//! Elections that lose records.

use std::sync::Arc;

use anyhow::{Result, ensure};
use devstack::{KafkaCluster, WorkDir, eventually};
use kafka_client::{Cluster, EpochEnd};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};

use crate::harness::{connect, write_records};

const TOPIC: &str = "unclean";
const LEADER: i32 = 1;
const FOLLOWER: i32 = 2;
const REPLICATED: usize = 10;
const LOST: usize = 5;

/// The follower misses records that were acknowledged and visible, and becomes the leader.
#[tokio::test(flavor = "multi_thread")]
async fn an_unclean_election_ends_the_epoch_before_the_lost_records() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let mut kafka = KafkaCluster::start(&work_dir).await?;
    create_topic(kafka.brokers()).await?;
    let brokers = kafka.brokers().to_owned();
    let mut cluster = connect(&brokers).await?;
    wait_for_leader(&mut cluster, LEADER).await?;
    write_records(&brokers, TOPIC, REPLICATED).await?;
    kafka.process(FOLLOWER)?.suspend();
    // The first one can still be in the response to a fetch that the follower sent before. It is acknowledged once the
    // follower is no longer in sync.
    write_records(&brokers, TOPIC, 1).await?;
    write_records(&brokers, TOPIC, LOST - 1).await?;
    let before = cluster.topic(TOPIC).await?;
    let leader_epoch = before.partitions[0].leader_epoch;
    let end = cluster.end_of_epoch(TOPIC, 0, leader_epoch).await?;
    let end_offset = i64::try_from(REPLICATED + LOST)?;
    assert_eq!(
        end,
        Some(EpochEnd {
            leader_epoch,
            end_offset
        })
    );
    kafka.process(LEADER)?.kill_and_hold().await;
    kafka.process(FOLLOWER)?.resume();
    wait_for_leader(&mut cluster, FOLLOWER).await?;
    let after = cluster.topic(TOPIC).await?;
    assert_eq!(after.topic_id, before.topic_id);
    assert!(after.partitions[0].leader_epoch > leader_epoch, "{after:?}");
    // The new leader may not have become it yet.
    let end = eventually("the new leader responds", async || {
        Ok(cluster.end_of_epoch(TOPIC, 0, leader_epoch).await.ok())
    })
    .await?;
    let end_offset = end.map_or(0, |end| end.end_offset);
    assert!((10..=11).contains(&end_offset), "{end:?}");
    kafka.stop().await;
    Ok(())
}

async fn create_topic(brokers: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let replicas: [&[i32]; 1] = [&[LEADER, FOLLOWER]];
    let topic = NewTopic::new(TOPIC, 1, TopicReplication::Variable(&replicas))
        .set("min.insync.replicas", "1")
        .set("unclean.leader.election.enable", "true");
    let results = admin.create_topics([&topic], &AdminOptions::new()).await?;
    ensure!(results.iter().all(Result::is_ok), "{results:?}");
    Ok(())
}

async fn wait_for_leader(cluster: &mut Cluster, leader: i32) -> Result<()> {
    eventually(&format!("broker {leader} leads"), async || {
        // An error is retried: the queried broker may be the one that is down.
        let found = cluster.topic(TOPIC).await.ok();
        let found = found.and_then(|topic| topic.partitions[0].leader);
        Ok((found == Some(leader)).then_some(()))
    })
    .await
}
