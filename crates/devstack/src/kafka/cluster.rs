use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rdkafka::{
    ClientConfig,
    metadata::Metadata,
    producer::{BaseProducer, Producer as _},
};
use rustix::process::Signal;

use super::{LIGHT_JVM, node::Node, topics};
use crate::{home::Home, processes::Process, progress::step, waiting::eventually};

const SETTINGS: &str = include_str!("../../kafka/cluster.properties");
const NODES: usize = 3;
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// A broker that says nothing for so long is asked no more: another one knows as well.
const SILENCE_LIMIT_MS: &str = "1000";

/// Three Apache Kafka brokers that are the controllers too: any one of them can be killed, and
/// everything goes on after an election. One that was killed comes back by itself.
pub struct KafkaCluster {
    processes: [Process; NODES],
    brokers: String,
    client: Arc<BaseProducer>,
}

/// A partition of a topic, as a broker knows it: a moment late perhaps.
struct Partition {
    topic: String,
    /// -1 while nobody leads it.
    leader: i32,
    /// The brokers that have all of it.
    in_sync: Vec<i32>,
}

impl KafkaCluster {
    /// The ids of the brokers.
    pub const IDS: [i32; NODES] = [1, 2, 3];

    /// Starts the brokers in `home`, all at once.
    ///
    /// # Errors
    /// As of [`Kafka::start`](super::Kafka::start).
    pub async fn start(home: &Arc<Home>) -> Result<Self> {
        // At the end nothing of them is needed, and without each other they end slowly.
        let node = |id: usize| {
            let node = Node::new(id, &format!("kafka-{id}"))?;
            anyhow::Ok(node.stopped_by(Signal::KILL))
        };
        let nodes = [node(1)?, node(2)?, node(3)?];
        let voters = nodes.each_ref().map(Node::voter).join(",");
        let brokers = nodes.each_ref().map(Node::address).join(",");
        let client = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("socket.timeout.ms", SILENCE_LIMIT_MS)
            .set("log_level", "0")
            .create()?;
        let [first, second, third] = &nodes;
        let start = async |node: &Node| {
            let node = node.start(home, &LIGHT_JVM, &voters, &[SETTINGS]);
            node.await
        };
        let starting = async { tokio::try_join!(start(first), start(second), start(third)) };
        let starting = Box::pin(step("starting three brokers", starting));
        let (first, second, third) = starting.await?;
        let cluster = Self {
            processes: [first, second, third],
            brokers,
            client: Arc::new(client),
        };
        eventually("three brokers that know each other", async || {
            let known = cluster.metadata().await.ok();
            let known = known.map_or(0, |metadata| metadata.brokers().len());
            Ok((known == NODES).then_some(()))
        })
        .await?;
        Ok(cluster)
    }

    /// The addresses of the brokers, as clients want them.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The process of a broker.
    ///
    /// # Errors
    /// If there is no broker of this id.
    pub fn process(&mut self, id: i32) -> Result<&mut Process> {
        let index = Self::IDS.iter().position(|known| *known == id);
        let index = index.with_context(|| format!("there is no broker {id}"))?;
        Ok(&mut self.processes[index])
    }

    /// Makes a topic of which every broker has a copy, and two must have a record before it is
    /// acknowledged.
    ///
    /// # Errors
    /// If the brokers reject.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<()> {
        let replicas = i32::try_from(NODES)?;
        let configs = [&[("min.insync.replicas", "2")], configs].concat();
        topics::create_topic(&self.brokers, name, partitions, replicas, &configs).await?;
        self.wait_until_in_sync().await
    }

    /// The broker that leads the first partition of a topic.
    ///
    /// # Errors
    /// If no broker answers, or there is no such topic, or nobody leads it.
    pub async fn leader(&self, topic: &str) -> Result<i32> {
        let partitions = self.partitions().await?;
        let first = partitions.into_iter().find(|found| found.topic == topic);
        let leader = first.map(|partition| partition.leader);
        leader
            .filter(|leader| *leader >= 0)
            .with_context(|| format!("nobody leads {topic}"))
    }

    /// Waits until every broker has all of every topic.
    ///
    /// # Errors
    /// If that never comes.
    pub async fn wait_until_in_sync(&self) -> Result<()> {
        let is_whole = |partition: &Partition| partition.in_sync.len() == NODES;
        self.wait_until("every broker in sync", is_whole).await
    }

    /// Waits until the others go on without a broker, in every topic.
    ///
    /// # Errors
    /// If they never do.
    pub async fn wait_until_without(&self, id: i32) -> Result<()> {
        let is_without = |partition: &Partition| {
            partition.leader >= 0 && partition.leader != id && !partition.in_sync.contains(&id)
        };
        let what = format!("nothing depends on broker {id}");
        self.wait_until(&what, is_without).await
    }

    /// Ends the brokers.
    pub async fn stop(self) {
        let [first, second, third] = self.processes;
        tokio::join!(first.stop(), second.stop(), third.stop());
    }

    async fn wait_until(&self, what: &str, is_so: impl Fn(&Partition) -> bool) -> Result<()> {
        eventually(what, async || {
            // The one that is asked may be the one that goes.
            let partitions = self.partitions().await.ok();
            Ok(partitions
                .is_some_and(|all| all.iter().all(&is_so))
                .then_some(()))
        })
        .await
    }

    async fn partitions(&self) -> Result<Vec<Partition>> {
        let metadata = self.metadata().await?;
        let partitions = metadata.topics().iter().flat_map(|topic| {
            topic.partitions().iter().map(|partition| Partition {
                topic: topic.name().to_owned(),
                leader: partition.leader(),
                in_sync: partition.isr().to_vec(),
            })
        });
        Ok(partitions.collect())
    }

    async fn metadata(&self) -> Result<Metadata> {
        let client = Arc::clone(&self.client);
        let asking = move || client.client().fetch_metadata(None, METADATA_TIMEOUT);
        Ok(tokio::task::spawn_blocking(asking).await??)
    }
}
