//! A topic, as somebody sees it who is in no group.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::KafkaError,
};

use crate::offsets::Moves;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Of a consumer that reads to the end of its partitions.
pub(crate) struct UntilTheEnd;

impl ClientContext for UntilTheEnd {
    /// By default every end of a partition is logged as an error. `poll` returns errors as well.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for UntilTheEnd {}

pub(crate) type TopicConsumer = BaseConsumer<UntilTheEnd>;

pub(crate) struct Topic {
    name: String,
    config: ClientConfig,
    client: BaseConsumer,
}

impl Topic {
    pub(crate) fn new(brokers: &str, name: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            // librdkafka asks for a name, and nothing is committed under it.
            .set("group.id", "projection rebuild")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("queued.max.messages.kbytes", "32768");
        Ok(Self {
            name: name.to_owned(),
            client: config.create()?,
            config,
        })
    }

    /// Whether the topic holds the newest record of every key: nothing but compaction may have taken
    /// records away.
    ///
    /// # Errors
    /// If it may not.
    pub(crate) async fn check_complete(&self) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.config.create()?;
        let topic = ResourceSpecifier::Topic(&self.name);
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let described = admin.describe_configs([&topic], &options).await?;
        let described = described
            .into_iter()
            .next()
            .context("Kafka says nothing of the topic")?;
        let described = described.map_err(|err| anyhow::anyhow!("topic {}: {err}", self.name))?;
        let policy = described
            .get("cleanup.policy")
            .and_then(|entry| entry.value.clone());
        let policy = policy.context("Kafka does not say how the topic is cleaned")?;
        let mut is_whole = true;
        // Compaction leaves where a partition begins as it is; everything else moves it.
        for partition in self.partitions()? {
            is_whole &= self.watermarks(partition)?.0 == 0;
        }
        ensure!(
            is_whole,
            "topic {} can't be complete: its cleanup.policy is {policy}, and old records are gone; \
             only a compacted topic keeps the newest record of every key",
            self.name
        );
        Ok(())
    }

    pub(crate) fn partitions(&self) -> Result<Vec<i32>> {
        let metadata = self.client.fetch_metadata(Some(&self.name), TIMEOUT)?;
        let topic = metadata
            .topics()
            .first()
            .context("Kafka says nothing of the topic")?;
        ensure!(
            !topic.partitions().is_empty(),
            "Kafka has no topic {}",
            self.name
        );
        Ok(topic.partitions().iter().map(|p| p.id()).collect())
    }

    /// The offsets at which a partition begins and ends.
    pub(crate) fn watermarks(&self, partition: i32) -> Result<(i64, i64)> {
        Ok(self
            .client
            .fetch_watermarks(&self.name, partition, TIMEOUT)?)
    }

    pub(crate) fn ends(&self, partitions: impl Iterator<Item = i32>) -> Result<Vec<(i32, i64)>> {
        partitions.map(|p| Ok((p, self.watermarks(p)?.1))).collect()
    }

    /// Where the first record is at this offset or behind it, and when it was written, in
    /// milliseconds of Unix time; none if nothing is left up to the end.
    ///
    /// # Errors
    /// If it does not come, or Kafka has no such offset.
    pub(crate) fn first_record(&self, partition: i32, offset: i64) -> Result<Option<(i64, i64)>> {
        let mut config = self.config.clone();
        config.set("enable.partition.eof", "true");
        let consumer: TopicConsumer = config.create_with_context(UntilTheEnd)?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(&self.name, partition, Offset::Offset(offset))?;
        consumer.assign(&partitions)?;
        let message = consumer.poll(TIMEOUT).with_context(|| {
            format!(
                "topic {}: its record at offset {offset} does not come",
                self.name
            )
        })?;
        match message {
            Ok(message) => {
                let written_ms = message.timestamp().to_millis().unwrap_or_default();
                Ok(Some((message.offset(), written_ms)))
            }
            Err(KafkaError::PartitionEOF(_)) => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    /// A consumer of all these partitions, from these offsets on.
    pub(crate) fn consumer_from(&self, from: &Moves) -> Result<TopicConsumer> {
        let mut config = self.config.clone();
        config.set("enable.partition.eof", "true");
        let consumer: TopicConsumer = config.create_with_context(UntilTheEnd)?;
        let mut partitions = TopicPartitionList::new();
        for (partition, (next, _)) in from {
            partitions.add_partition_offset(&self.name, *partition, Offset::Offset(*next))?;
        }
        consumer.assign(&partitions)?;
        Ok(consumer)
    }
}
