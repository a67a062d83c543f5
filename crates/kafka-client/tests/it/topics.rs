//! Topic ids and leader epochs.

use anyhow::Result;
use devstack::{Addresses, eventually};
use kafka_client::{EpochEnd, Error};
use uuid::Uuid;

use crate::harness::{connect, write_records};

#[tokio::test]
async fn only_a_recreated_topic_has_another_id() -> Result<()> {
    let servers = Addresses::shared();
    let mut cluster = connect(servers.brokers()).await?;
    let topic = Addresses::unique_name("identity");
    servers.create_topic(&topic, 3).await?;
    let created = cluster.topic(&topic).await?;
    assert_ne!(created.topic_id, Uuid::nil());
    assert_eq!(created.partitions.len(), 3);
    servers.add_partitions(&topic, 4).await?;
    servers
        .write_record(&topic, Some(b"k"), Some(b"v"), &[])
        .await?;
    let grown = cluster.topic(&topic).await?;
    assert_eq!(grown.topic_id, created.topic_id);
    assert_eq!(grown.partitions.len(), 4);
    servers.delete_topic(&topic).await?;
    eventually("the topic is deleted", async || {
        match cluster.topic(&topic).await {
            Err(Error::UnknownTopic(name)) => Ok((name == topic).then_some(())),
            other => other.map(|_| None).map_err(Into::into),
        }
    })
    .await?;
    servers.create_topic(&topic, 4).await?;
    let recreated = cluster.topic(&topic).await?;
    assert_ne!(recreated.topic_id, created.topic_id);
    Ok(())
}

#[tokio::test]
async fn a_missing_topic_and_a_missing_partition_are_distinguished() -> Result<()> {
    let servers = Addresses::shared();
    let mut cluster = connect(servers.brokers()).await?;
    let topic = Addresses::unique_name("missing");
    let unknown = Error::UnknownTopic(topic.clone());
    assert_eq!(cluster.topic(&topic).await, Err(unknown.clone()));
    assert_eq!(cluster.end_of_epoch(&topic, 0, 0).await, Err(unknown));
    let invalid = cluster.topic("a topic?").await;
    assert_eq!(invalid, Err(Error::InvalidTopic("a topic?".into())));
    servers.create_topic(&topic, 1).await?;
    for partition in [-1, 1] {
        let end = cluster.end_of_epoch(&topic, partition, 0).await;
        let topic = topic.clone();
        assert_eq!(end, Err(Error::UnknownPartition { topic, partition }));
    }
    Ok(())
}

#[tokio::test]
async fn the_current_epoch_ends_with_the_log() -> Result<()> {
    let servers = Addresses::shared();
    let mut cluster = connect(servers.brokers()).await?;
    let topic = Addresses::unique_name("epoch");
    servers.create_topic(&topic, 1).await?;
    let partition = cluster.topic(&topic).await?.partitions[0];
    assert!(partition.leader.is_some());
    let leader_epoch = partition.leader_epoch;
    for end_offset in [0, 3] {
        let end = cluster.end_of_epoch(&topic, 0, leader_epoch).await?;
        let expected = EpochEnd {
            leader_epoch,
            end_offset,
        };
        assert_eq!(end, Some(expected));
        write_records(servers.brokers(), &topic, 3).await?;
    }
    let later = cluster.end_of_epoch(&topic, 0, leader_epoch + 1).await?;
    assert_eq!(later, None);
    Ok(())
}
