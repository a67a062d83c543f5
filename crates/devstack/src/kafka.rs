mod cluster;
mod groups;
mod node;
mod topics;

use std::sync::Arc;

use anyhow::Result;

pub use self::cluster::KafkaCluster;
pub(crate) use self::groups::count_assigned_members;
use self::node::{Node, class_path, java};
pub(crate) use self::topics::{
    add_partitions, alter_topic, create_topic, delete_records_before, delete_topic, describe_topic,
    topic_names,
};
use crate::{ports::free_port, processes::Process, proxy::Proxy, work_dir::WorkDir};

/// Options for a fast start and a small footprint, for tests.
const LIGHT_JVM: [&str; 3] = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];

/// A single Apache Kafka broker, which is also the controller.
#[derive(Debug)]
pub struct Kafka {
    pub process: Process,
    brokers: String,
}

impl Kafka {
    /// The version in the POM; part of the name in the cache.
    pub const VERSION: &str = "4.3.1";

    /// Downloads Kafka unless cached, and starts a broker in `work_dir`.
    ///
    /// # Errors
    /// If Java 17 or Maven is not installed, or the broker fails to start.
    pub async fn start(work_dir: &Arc<WorkDir>) -> Result<Self> {
        Self::launch(work_dir, &LIGHT_JVM, &[], &[]).await
    }

    /// Like [`start`](Self::start), with other JVM options.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with_jvm(work_dir: &Arc<WorkDir>, jvm_options: &[&str]) -> Result<Self> {
        Self::launch(work_dir, jvm_options, &[], &[]).await
    }

    /// Like [`start`](Self::start), with lines for the broker's configuration. `@PORT@` and `@CONTROLLER_PORT@` are replaced
    /// by the broker's ports.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with_settings(work_dir: &Arc<WorkDir>, settings: &[&str]) -> Result<Self> {
        Self::launch(work_dir, &LIGHT_JVM, settings, &[]).await
    }

    /// Like [`start_with_settings`](Self::start_with_settings), with a second listener that clients reach through the returned
    /// proxy only.
    ///
    /// # Errors
    /// As [`start`](Self::start), or if no port is free.
    pub async fn start_behind_proxy(
        work_dir: &Arc<WorkDir>,
        settings: &[&str],
    ) -> Result<(Self, Proxy)> {
        let behind_proxy = format!("127.0.0.1:{}", free_port()?);
        let proxy = Proxy::start(&behind_proxy).await?;
        let plain = "PLAINTEXT://127.0.0.1:@PORT@";
        let listeners = format!(
            "listeners={plain},PROXIED://{behind_proxy},CONTROLLER://127.0.0.1:@CONTROLLER_PORT@\n\
             advertised.listeners={plain},PROXIED://{}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            proxy.address()
        );
        let settings = [&[&*listeners], settings].concat();
        Ok((Self::start_with_settings(work_dir, &settings).await?, proxy))
    }

    /// Like [`start_with_settings`](Self::start_with_settings), with additional JVM options, and with SCRAM users in the
    /// format of `kafka-storage.sh format --add-scram`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with_users(
        work_dir: &Arc<WorkDir>,
        jvm_options: &[&str],
        settings: &[&str],
        users: &[&str],
    ) -> Result<Self> {
        let jvm_options = [&LIGHT_JVM, jvm_options].concat();
        Self::launch(work_dir, &jvm_options, settings, users).await
    }

    async fn launch(
        work_dir: &Arc<WorkDir>,
        jvm_options: &[&str],
        settings: &[&str],
        users: &[&str],
    ) -> Result<Self> {
        let node = Node::new(1, "kafka")?.with_users(users);
        let process = node
            .start(work_dir, jvm_options, &node.voter(), settings)
            .await?;
        let brokers = node.address();
        Ok(Self { process, brokers })
    }

    /// The bootstrap servers.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Sets a quota of all clients with this id, such as `producer_byte_rate=100000`.
    ///
    /// # Errors
    /// If the broker returns an error.
    pub async fn set_quota(&self, work_dir: &WorkDir, client_id: &str, quota: &str) -> Result<()> {
        let program = java("kafka-configs", &class_path().await?, &LIGHT_JVM);
        let program = program
            .args(["kafka.admin.ConfigCommand", "--bootstrap-server"])
            .args([self.brokers()])
            .args(["--alter", "--entity-type", "clients", "--entity-name"])
            .args([client_id, "--add-config", quota]);
        program.run_once(work_dir).await
    }

    /// Creates a topic unless it exists.
    ///
    /// # Errors
    /// If the broker returns an error.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<()> {
        topics::create_topic(&self.brokers, name, partitions, 1, configs).await
    }
}
