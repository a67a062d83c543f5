use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    types::RDKafkaErrorCode,
};

pub const PARTITIONS: i32 = 4;
const TIMEOUT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);
const ATTEMPTS: u32 = 200;

/// The topic of all records.
#[derive(Clone, Debug)]
pub struct Topic {
    pub brokers: String,
    pub name: String,
}

impl Topic {
    /// Deletes and recreates the topic, so that a run does not read the records of an earlier one.
    pub async fn recreate(&self) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        let options = AdminOptions::new()
            .operation_timeout(Some(TIMEOUT))
            .request_timeout(Some(TIMEOUT));
        for result in admin.delete_topics(&[&self.name], &options).await? {
            match result {
                Ok(_)
                | Err((
                    _,
                    RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic,
                )) => {}
                Err((topic, code)) => bail!("failed to delete topic {topic}: {code}"),
            }
        }
        let topic = NewTopic::new(&self.name, PARTITIONS, TopicReplication::Fixed(1));
        // The deletion completes some time after the broker's response.
        for _ in 0..ATTEMPTS {
            let results = admin.create_topics([&topic], &options).await?;
            match results
                .into_iter()
                .next()
                .context("the broker returned no result")?
            {
                Ok(_) => return Ok(()),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => tokio::time::sleep(PAUSE).await,
                Err((topic, code)) => bail!("failed to create topic {topic}: {code}"),
            }
        }
        bail!("timed out waiting for the deletion of topic {}", self.name)
    }

    /// Opens a client that reads the end offsets. Blocks while it connects.
    pub fn ends(&self) -> Result<EndOffsets> {
        let consumer: BaseConsumer = self.client().set("group.id", "bench").create()?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(&self.name, partition, Offset::End)?;
        }
        Ok(EndOffsets {
            consumer,
            partitions,
        })
    }

    /// Opens a consumer that starts at the current end. Blocks while it connects.
    pub fn consumer_from_now(&self) -> Result<BaseConsumer> {
        let ends = self.ends()?.offsets()?;
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "bench")
            .set("enable.auto.commit", "false")
            .create()?;
        consumer.assign(&ends)?;
        Ok(consumer)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }
}

/// Reads the end offsets of a topic. With one replica they count the acknowledged records.
pub struct EndOffsets {
    consumer: BaseConsumer,
    partitions: TopicPartitionList,
}

impl EndOffsets {
    /// Returns the number of records. Blocks for a round trip.
    pub fn total(&self) -> Result<u64> {
        let mut total = 0;
        for element in self.offsets()?.elements() {
            match element.offset() {
                Offset::Offset(offset) => total += u64::try_from(offset)?,
                Offset::End => {}
                other => bail!("invalid end offset {other:?}"),
            }
        }
        Ok(total)
    }

    fn offsets(&self) -> Result<TopicPartitionList> {
        let offsets = self
            .consumer
            .offsets_for_times(self.partitions.clone(), TIMEOUT);
        offsets.context("failed to read the end offsets of the topic")
    }
}
