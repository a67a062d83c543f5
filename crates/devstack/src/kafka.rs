mod cluster;
mod node;
mod topics;

use std::sync::Arc;

use anyhow::Result;

pub use self::cluster::KafkaCluster;
use self::node::Node;
pub(crate) use self::topics::{
    add_partitions, alter_topic, create_topic, delete_records_before, delete_topic, describe_topic,
    topic_names,
};
use crate::{home::Home, processes::Process};

/// Quick to start and small, which is what tests want of it.
const LIGHT_JVM: [&str; 3] = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];

/// An Apache Kafka broker of its own, which is its own controller.
#[derive(Debug)]
pub struct Kafka {
    /// The running broker.
    pub process: Process,
    brokers: String,
}

impl Kafka {
    /// The version in the pom, which names the folder of the cache.
    pub const VERSION: &str = "4.3.1";

    /// Fetches Kafka where it was not fetched before, and starts a broker in `home`.
    ///
    /// # Errors
    /// If there is no Java 17 or no Maven on this machine, or the broker doesn't start.
    pub async fn start(home: &Arc<Home>) -> Result<Self> {
        Self::launch(home, &LIGHT_JVM, &[], &[]).await
    }

    /// The same, on a virtual machine with these options.
    ///
    /// # Errors
    /// As of [`start`](Self::start).
    pub async fn start_with(home: &Arc<Home>, jvm_options: &[&str]) -> Result<Self> {
        Self::launch(home, jvm_options, &[], &[]).await
    }

    /// The same as [`start`](Self::start), with lines for the broker's configuration. `@PORT@` and
    /// `@CONTROLLER_PORT@` in them are the ports that it has by itself.
    ///
    /// # Errors
    /// As of [`start`](Self::start).
    pub async fn start_with_settings(home: &Arc<Home>, settings: &[&str]) -> Result<Self> {
        Self::launch(home, &LIGHT_JVM, settings, &[]).await
    }

    /// The same as [`start_with_settings`](Self::start_with_settings), with users that log in by
    /// SCRAM, as `kafka-storage.sh format --add-scram` takes them.
    ///
    /// # Errors
    /// As of [`start`](Self::start).
    pub async fn start_with_users(
        home: &Arc<Home>,
        settings: &[&str],
        users: &[&str],
    ) -> Result<Self> {
        Self::launch(home, &LIGHT_JVM, settings, users).await
    }

    async fn launch(
        home: &Arc<Home>,
        jvm_options: &[&str],
        settings: &[&str],
        users: &[&str],
    ) -> Result<Self> {
        let node = Node::new(1, "kafka")?.with_users(users);
        let process = node
            .start(home, jvm_options, &node.voter(), settings)
            .await?;
        let brokers = node.address();
        Ok(Self { process, brokers })
    }

    /// The addresses of the brokers, as clients want them.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Makes a topic. One that exists is left as it is.
    ///
    /// # Errors
    /// If the broker rejects.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<()> {
        topics::create_topic(&self.brokers, name, partitions, 1, configs).await
    }
}
