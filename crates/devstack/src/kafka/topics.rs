use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
        TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    types::RDKafkaErrorCode,
};

use crate::eventually;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Creates a topic unless it exists.
pub(crate) async fn create_topic(
    brokers: &str,
    topic: &str,
    partitions: i32,
    replicas: i32,
    configs: &[(&str, &str)],
) -> Result<()> {
    let mut new_topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
    for (name, value) in configs {
        new_topic = new_topic.set(name, value);
    }
    let results = admin(brokers)?
        .create_topics([&new_topic], &options())
        .await?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(anyhow!("failed to create topic {topic}: {code}")),
        }
    }
    wait_for_leaders(brokers, topic, partitions).await
}

/// Waits until the leaders of new partitions accept requests, which is shortly after they appear in the metadata.
async fn wait_for_leaders(brokers: &str, topic: &str, partitions: i32) -> Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "devstack-topics")
        .create()?;
    let consumer = Arc::new(consumer);
    eventually(&format!("leaders of {topic}"), async || {
        let (consumer, topic) = (Arc::clone(&consumer), topic.to_owned());
        let all_led = tokio::task::spawn_blocking(move || {
            let is_led = |partition| {
                consumer
                    .fetch_watermarks(&topic, partition, TIMEOUT)
                    .is_ok()
            };
            (0..partitions).all(is_led)
        });
        Ok(all_led.await?.then_some(()))
    })
    .await
}

/// Increases the partition count of a topic to `total`.
pub(crate) async fn add_partitions(brokers: &str, topic: &str, total: usize) -> Result<()> {
    let results = admin(brokers)?
        .create_partitions([&NewPartitions::new(topic, total)], &options())
        .await?;
    for result in results {
        result.map_err(|(topic, code)| {
            anyhow!("failed to increase topic {topic} to {total} partitions: {code}")
        })?;
    }
    wait_for_leaders(brokers, topic, i32::try_from(total)?).await
}

/// Deletes a topic. The deletion completes some time after this returns.
pub(crate) async fn delete_topic(brokers: &str, topic: &str) -> Result<()> {
    for result in admin(brokers)?.delete_topics(&[topic], &options()).await? {
        result.map_err(|(_, code)| anyhow!("failed to delete topic {topic}: {code}"))?;
    }
    Ok(())
}

/// Replaces the configuration of a topic.
pub(crate) async fn alter_topic(
    brokers: &str,
    topic: &str,
    configs: &[(&str, &str)],
) -> Result<()> {
    let mut alteration = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (name, value) in configs {
        alteration = alteration.set(name, value);
    }
    let results = admin(brokers)?
        .alter_configs([&alteration], &options())
        .await?;
    for result in results {
        result.map_err(|(_, code)| anyhow!("failed to configure topic {topic}: {code}"))?;
    }
    Ok(())
}

/// Returns the number of partitions and the configuration of a topic.
pub(crate) async fn describe_topic(
    brokers: &str,
    topic: &str,
) -> Result<(usize, BTreeMap<String, String>)> {
    let (admin, name) = (admin(brokers)?, topic.to_owned());
    let resource = ResourceSpecifier::Topic(topic);
    let described = admin.describe_configs([&resource], &options()).await?;
    let described = described
        .into_iter()
        .next()
        .context("the broker returned no configuration")?;
    let described =
        described.map_err(|code| anyhow!("failed to describe topic {topic}: {code}"))?;
    let configs = described.entries.into_iter();
    let configs = configs.filter_map(|entry| Some((entry.name, entry.value?)));
    let fetch = move || {
        admin.inner().fetch_metadata(Some(&name), TIMEOUT).map(|m| {
            m.topics()
                .first()
                .map_or(0, |found| found.partitions().len())
        })
    };
    let partitions = tokio::task::spawn_blocking(fetch).await??;
    Ok((partitions, configs.collect()))
}

/// Returns the names of all topics, including internal ones.
pub(crate) async fn topic_names(brokers: &str) -> Result<Vec<String>> {
    let admin = admin(brokers)?;
    let fetch = move || admin.inner().fetch_metadata(None, TIMEOUT);
    let metadata = tokio::task::spawn_blocking(fetch).await??;
    let topics = metadata.topics().iter();
    Ok(topics.map(|topic| topic.name().to_owned()).collect())
}

/// Deletes the records of a partition before an offset, as retention does.
pub(crate) async fn delete_records_before(
    brokers: &str,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<()> {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    admin(brokers)?.delete_records(&offsets, &options()).await?;
    Ok(())
}

fn admin(brokers: &str) -> Result<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?)
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .operation_timeout(Some(TIMEOUT))
        .request_timeout(Some(TIMEOUT))
}
