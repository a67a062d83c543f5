//! Brokers that are restarted or do not respond, and calls that are abandoned.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use devstack::{Addresses, Kafka, WorkDir, eventually, free_port};
use kafka_client::{Cluster, Options, Security};
use tokio::net::TcpListener;

use crate::harness::{connect, options};

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
    let responding = Addresses::shared().brokers();
    let unused = format!("127.0.0.1:{}", free_port()?);
    let cluster = connect(&format!("{unused}, {responding}")).await?;
    assert_eq!(cluster.broker_count(), 1);
    let failed = connect(&unused).await.err().map(|err| err.to_string());
    assert!(failed.is_some_and(|reason| reason.contains(&unused)));
    Ok(())
}

#[tokio::test]
async fn connecting_to_a_silent_broker_ends() -> Result<()> {
    // The kernel accepts the connection, and no process responds.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let options = Options {
        timeout: Duration::from_millis(100),
        ..options(Security::default())
    };
    let address = listener.local_addr()?.to_string();
    let failed = Cluster::connect(&address, options).await.err();
    let failed = failed.map(|err| err.to_string());
    let expected = format!("broker {address} did not respond within 0.1 s");
    assert_eq!(failed, Some(expected));
    Ok(())
}

#[tokio::test]
async fn an_abandoned_call_does_not_disturb_the_next_one() -> Result<()> {
    let servers = Addresses::shared();
    let topic = Addresses::unique_name("abandoned");
    servers.create_topic(&topic, 1).await?;
    let mut cluster = connect(servers.brokers()).await?;
    tokio::select! {
        biased;
        found = cluster.topic("another") => panic!("the response is already there: {found:?}"),
        // The request is sent.
        () = std::future::ready(()) => {}
    }
    let found = cluster.topic(&topic).await?;
    assert_eq!(found.partitions.len(), 1);
    Ok(())
}
