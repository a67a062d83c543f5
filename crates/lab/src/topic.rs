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

/// The topic that all records go to.
#[derive(Clone, Debug)]
pub struct Topic {
    pub brokers: String,
    pub name: String,
}

impl Topic {
    /// Deletes the topic and makes it anew, so that no run sees the records of another.
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
                Err((topic, code)) => bail!("can't delete topic {topic}: {code}"),
            }
        }
        let topic = NewTopic::new(&self.name, PARTITIONS, TopicReplication::Fixed(1));
        // The broker answers before the deleted one has gone everywhere.
        for _ in 0..ATTEMPTS {
            let results = admin.create_topics([&topic], &options).await?;
            match results.into_iter().next().context("no answer")? {
                Ok(_) => return Ok(()),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => tokio::time::sleep(PAUSE).await,
                Err((topic, code)) => bail!("can't create topic {topic}: {code}"),
            }
        }
        bail!("topic {} doesn't go away", self.name)
    }

    /// Looks at how far the topic goes. Blocks while it connects.
    pub fn ends(&self) -> Result<Ends> {
        let consumer: BaseConsumer = self.client().set("group.id", "bench").create()?;
        let mut question = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            question.add_partition_offset(&self.name, partition, Offset::End)?;
        }
        Ok(Ends { consumer, question })
    }

    /// A consumer of everything that comes from now on. Blocks while it connects.
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

/// Tells how many acknowledged records the topic has: with one replica, the end of a partition is
/// what the broker has acknowledged.
pub struct Ends {
    consumer: BaseConsumer,
    question: TopicPartitionList,
}

impl Ends {
    /// The number of records. Blocks for a round trip.
    pub fn total(&self) -> Result<u64> {
        let mut total = 0;
        for element in self.offsets()?.elements() {
            match element.offset() {
                Offset::Offset(offset) => total += u64::try_from(offset)?,
                Offset::End => {}
                other => bail!("{other:?} is no end of a partition"),
            }
        }
        Ok(total)
    }

    fn offsets(&self) -> Result<TopicPartitionList> {
        let offsets = self
            .consumer
            .offsets_for_times(self.question.clone(), TIMEOUT);
        offsets.context("the broker doesn't tell where the topic ends")
    }
}
