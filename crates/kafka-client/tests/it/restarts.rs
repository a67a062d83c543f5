//! Brokers that are restarted or do not respond.

use std::sync::Arc;

use anyhow::Result;
use devstack::{Kafka, WorkDir, eventually, free_port};

use crate::harness::connect;

const TOPIC: &str = "restarted";

/// Also covers idle connections that the broker closes.
#[tokio::test(flavor = "multi_thread")]
async fn closed_connections_are_replaced_without_an_error() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let mut kafka = Kafka::start(&work_dir).await?;
    kafka.create_topic(TOPIC, 1, &[]).await?;
    let mut cluster = connect(kafka.brokers()).await?;
    let created = cluster.topic(TOPIC).await?;
    let first = cluster.end_of_epoch(TOPIC, 0, 0).await?;
    assert!(first.is_some());
    kafka.process.kill_and_hold().await;
    kafka.process.release().await;
    let brokers = kafka.brokers().to_owned();
    eventually("the partition has a leader", async || {
        let Ok(mut other) = connect(&brokers).await else {
            return Ok(None);
        };
        Ok(other.end_of_epoch(TOPIC, 0, 0).await.ok())
    })
    .await?;
    assert_eq!(cluster.end_of_epoch(TOPIC, 0, 0).await?, first);
    assert_eq!(cluster.topic(TOPIC).await?.topic_id, created.topic_id);
    kafka.process.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_bootstrap_broker_is_tried() -> Result<()> {
    let responding = devstack::Addresses::shared().brokers();
    let unused = format!("127.0.0.1:{}", free_port()?);
    let cluster = connect(&format!("{unused}, {responding}")).await?;
    assert_eq!(cluster.broker_count(), 1);
    let failed = connect(&unused).await.err().map(|err| err.to_string());
    assert!(failed.is_some_and(|reason| reason.contains(&unused)));
    Ok(())
}
