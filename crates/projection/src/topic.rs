//! Access to a topic without a consumer group.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::KafkaError,
};

use crate::offsets::OffsetRanges;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The context of a consumer that reads to the end of its partitions.
pub(crate) struct QuietContext;

impl ClientContext for QuietContext {
    /// Logs at debug level: the default logs every end of a partition as an error, and `poll` returns errors too.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for QuietContext {}

pub(crate) type TopicConsumer = BaseConsumer<QuietContext>;

pub(crate) struct Topic {
    name: String,
    config: ClientConfig,
    client: BaseConsumer,
}

impl Topic {
    pub(crate) fn new(brokers: &str, name: &str) -> Result<Self> {
        Self::for_group(brokers, name, "projection rebuild")
    }

    /// Creates a client that uses the permissions of a group, which it does not join.
    pub(crate) fn for_group(brokers: &str, name: &str, group: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            // librdkafka requires a group; nothing is committed to it.
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("queued.max.messages.kbytes", "32768");
        Ok(Self {
            name: name.to_owned(),
            client: config.create()?,
            config,
        })
    }

    /// Checks that the topic has the newest record of every key: only compaction may have removed records.
    ///
    /// # Errors
    /// If other records may have been removed.
    pub(crate) async fn ensure_complete(&self) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.config.create()?;
        let topic = ResourceSpecifier::Topic(&self.name);
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let described = admin.describe_configs([&topic], &options).await?;
        let described = described
            .into_iter()
            .next()
            .with_context(|| format!("Kafka returned no configuration of topic {}", self.name))?;
        let described = described.map_err(|err| anyhow::anyhow!("topic {}: {err}", self.name))?;
        let policy = described
            .get("cleanup.policy")
            .and_then(|entry| entry.value.clone());
        let policy = policy
            .with_context(|| format!("Kafka returned no cleanup.policy of topic {}", self.name))?;
        let mut is_complete = true;
        // Compaction keeps the first offset of a partition; a retention or a deletion of records advances it.
        for partition in self.partitions()? {
            is_complete &= self.watermarks(partition)?.0 == 0;
        }
        ensure!(
            is_complete,
            "topic {} is incomplete: old records were deleted (cleanup.policy={policy}). \
             A rebuild requires a topic that was only ever compacted.",
            self.name
        );
        Ok(())
    }

    pub(crate) fn partitions(&self) -> Result<Vec<i32>> {
        let metadata = self.client.fetch_metadata(Some(&self.name), TIMEOUT)?;
        let topic = metadata
            .topics()
            .first()
            .with_context(|| format!("Kafka returned no metadata of topic {}", self.name))?;
        ensure!(
            !topic.partitions().is_empty(),
            "topic {} does not exist",
            self.name
        );
        Ok(topic.partitions().iter().map(|p| p.id()).collect())
    }

    pub(crate) fn count_group_members(&self, group: &str) -> Result<usize> {
        let groups = self.client.fetch_group_list(Some(group), TIMEOUT);
        let groups =
            groups.with_context(|| format!("failed to describe consumer group {group}"))?;
        Ok(groups
            .groups()
            .iter()
            .map(|group| group.members().len())
            .sum())
    }

    /// Returns the first offset of a partition, and the one after its last.
    pub(crate) fn watermarks(&self, partition: i32) -> Result<(i64, i64)> {
        Ok(self
            .client
            .fetch_watermarks(&self.name, partition, TIMEOUT)?)
    }

    pub(crate) fn end_offsets(
        &self,
        partitions: impl Iterator<Item = i32>,
    ) -> Result<Vec<(i32, i64)>> {
        partitions.map(|p| Ok((p, self.watermarks(p)?.1))).collect()
    }

    /// Returns the offset and the timestamp (Unix time in milliseconds) of the first record at or after
    /// `offset`, or `None` if there is no record up to the end.
    ///
    /// # Errors
    /// If the record does not arrive in time, or the offset is out of range.
    pub(crate) fn first_record(&self, partition: i32, offset: i64) -> Result<Option<(i64, i64)>> {
        let mut config = self.config.clone();
        config.set("enable.partition.eof", "true");
        let consumer: TopicConsumer = config.create_with_context(QuietContext)?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(&self.name, partition, Offset::Offset(offset))?;
        consumer.assign(&partitions)?;
        let message = consumer.poll(TIMEOUT).with_context(|| {
            format!(
                "failed to read partition {partition} of topic {} at offset {offset}: no record within {} s",
                self.name,
                TIMEOUT.as_secs()
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

    /// Creates a consumer of these partitions that starts at these positions.
    pub(crate) fn consumer_from(&self, positions: &OffsetRanges) -> Result<TopicConsumer> {
        let mut config = self.config.clone();
        config.set("enable.partition.eof", "true");
        let consumer: TopicConsumer = config.create_with_context(QuietContext)?;
        let mut partitions = TopicPartitionList::new();
        for (partition, (next, _)) in positions {
            partitions.add_partition_offset(&self.name, *partition, Offset::Offset(*next))?;
        }
        consumer.assign(&partitions)?;
        Ok(consumer)
    }
}
