use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rdkafka::{
    ClientConfig,
    metadata::Metadata,
    producer::{BaseProducer, Producer as _},
};
use rustix::process::Signal;

use super::{LIGHT_JVM, node::Node, topics};
use crate::{processes::Process, progress::step, waiting::eventually, work_dir::WorkDir};

const SETTINGS: &str = include_str!("../../kafka/cluster.properties");
const NODES: usize = 3;
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// The client's timeout for a suspended broker, after which it asks another one.
const SOCKET_TIMEOUT_MS: &str = "1000";

/// Three Apache Kafka brokers that are also controllers. The cluster tolerates the loss of one; a killed broker is
/// restarted.
pub struct KafkaCluster {
    processes: [Process; NODES],
    brokers: String,
    client: Arc<BaseProducer>,
}

/// The state of a partition from a broker's metadata, which may be slightly outdated.
struct Partition {
    topic: String,
    /// -1 during an election.
    leader: i32,
    /// The in-sync replicas.
    in_sync: Vec<i32>,
}

impl KafkaCluster {
    pub const IDS: [i32; NODES] = [1, 2, 3];

    /// Starts the brokers in `work_dir`.
    ///
    /// # Errors
    /// As [`Kafka::start`](super::Kafka::start).
    pub async fn start(work_dir: &Arc<WorkDir>) -> Result<Self> {
        // Killed because their data is not needed, and a graceful stop without a quorum is slow.
        let node = |id: usize| {
            let node = Node::new(id, &format!("kafka-{id}"))?;
            anyhow::Ok(node.stop_signal(Signal::KILL))
        };
        let nodes = [node(1)?, node(2)?, node(3)?];
        let voters = nodes.each_ref().map(Node::voter).join(",");
        let brokers = nodes.each_ref().map(Node::address).join(",");
        let client = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("socket.timeout.ms", SOCKET_TIMEOUT_MS)
            .set("log_level", "0")
            .create()?;
        let [first, second, third] = &nodes;
        let start = async |node: &Node| {
            let node = node.start(work_dir, &LIGHT_JVM, &voters, &[SETTINGS]);
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
        eventually("a cluster of three brokers", async || {
            let known = cluster.metadata().await.ok();
            let known = known.map_or(0, |metadata| metadata.brokers().len());
            Ok((known == NODES).then_some(()))
        })
        .await?;
        Ok(cluster)
    }

    /// The bootstrap servers.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Returns the process of a broker.
    ///
    /// # Errors
    /// If no broker has this id.
    pub fn process(&mut self, id: i32) -> Result<&mut Process> {
        let index = Self::IDS.iter().position(|known| *known == id);
        let index = index.with_context(|| format!("no broker has id {id}"))?;
        Ok(&mut self.processes[index])
    }

    /// Creates a topic with three replicas and `min.insync.replicas=2`.
    ///
    /// # Errors
    /// If the brokers return an error.
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

    /// Returns the leader of a topic's first partition.
    ///
    /// # Errors
    /// If no broker responds, the topic does not exist, or it has no leader.
    pub async fn leader(&self, topic: &str) -> Result<i32> {
        let partitions = self.partitions().await?;
        let first = partitions.into_iter().find(|found| found.topic == topic);
        let leader = first.map(|partition| partition.leader);
        leader
            .filter(|leader| *leader >= 0)
            .with_context(|| format!("topic {topic} has no leader"))
    }

    /// Waits until all replicas are in sync.
    ///
    /// # Errors
    /// After a timeout.
    pub async fn wait_until_in_sync(&self) -> Result<()> {
        let is_in_sync = |partition: &Partition| partition.in_sync.len() == NODES;
        self.wait_until("all replicas in sync", is_in_sync).await
    }

    /// Waits until every partition has another leader, and this broker is not in sync.
    ///
    /// # Errors
    /// After a timeout.
    pub async fn wait_until_without(&self, id: i32) -> Result<()> {
        let is_without = |partition: &Partition| {
            partition.leader >= 0 && partition.leader != id && !partition.in_sync.contains(&id)
        };
        let what = format!("no partition depends on broker {id}");
        self.wait_until(&what, is_without).await
    }

    /// Stops the brokers.
    pub async fn stop(self) {
        let [first, second, third] = self.processes;
        tokio::join!(first.stop(), second.stop(), third.stop());
    }

    async fn wait_until(&self, what: &str, condition: impl Fn(&Partition) -> bool) -> Result<()> {
        eventually(what, async || {
            // An error is retried: the queried broker may be the one that is down.
            let partitions = self.partitions().await.ok();
            Ok(partitions
                .is_some_and(|all| all.iter().all(&condition))
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
