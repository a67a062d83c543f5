use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, Producer as _},
};
use rustix::process::Signal;

use super::Kafka;
use crate::{
    maven::fetch_jars,
    ports::free_port,
    processes::{Process, Program},
    work_dir::WorkDir,
};

const POM: &str = include_str!("../../kafka/pom.xml");
const PROPERTIES: &str = include_str!("../../kafka/server.properties");
const CLUSTER_ID: &str = "devstack-cluster-id-00";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A broker that is also a controller, alone or in a cluster.
#[derive(Debug)]
pub(super) struct Node {
    id: usize,
    /// The name of its log and its data directory.
    name: String,
    port: u16,
    controller_port: u16,
    stop_signal: Signal,
    users: Vec<String>,
}

impl Node {
    pub(super) fn new(id: usize, name: &str) -> Result<Self> {
        Ok(Self {
            id,
            name: name.to_owned(),
            port: free_port()?,
            controller_port: free_port()?,
            stop_signal: Signal::TERM,
            users: Vec::new(),
        })
    }

    /// Adds SCRAM users.
    pub(super) fn with_users(mut self, users: &[&str]) -> Self {
        self.users = users
            .iter()
            .map(|user| format!("--add-scram={user}"))
            .collect();
        self
    }

    /// Sets the signal that stops the broker, instead of SIGTERM.
    pub(super) fn stop_signal(mut self, signal: Signal) -> Self {
        self.stop_signal = signal;
        self
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its entry in `controller.quorum.voters`.
    pub(super) fn voter(&self) -> String {
        format!("{}@127.0.0.1:{}", self.id, self.controller_port)
    }

    /// Downloads Kafka unless cached, starts the node, and waits until it responds. `settings` are lines of its
    /// configuration; the last value of a name wins.
    pub(super) async fn start(
        &self,
        work_dir: &Arc<WorkDir>,
        jvm_options: &[&str],
        voters: &str,
        settings: &[&str],
    ) -> Result<Process> {
        let class_path = class_path().await?;
        let data = work_dir.path().join(&self.name);
        let mut properties = PROPERTIES.to_owned();
        for line in settings {
            properties += line;
            properties.push('\n');
        }
        let properties = properties
            .replace("@ID@", &self.id.to_string())
            .replace("@VOTERS@", voters)
            .replace("@PORT@", &self.port.to_string())
            .replace("@CONTROLLER_PORT@", &self.controller_port.to_string())
            .replace("@DATA@", &data.display().to_string());
        let properties = work_dir.write(&format!("{}.properties", self.name), &properties)?;
        let java = |name: &str| java(name, &class_path, jvm_options);
        java(&format!("{}-format", self.name))
            .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .args([&properties])
            .args(&self.users)
            .run_once(work_dir)
            .await?;
        let program = java(&self.name)
            .args(["kafka.Kafka"])
            .args([&properties])
            .stop_signal(self.stop_signal);
        let process = Process::start(work_dir, program);
        let address = self.address();
        process
            .wait_ready(START_TIMEOUT, async || fetch_metadata(&address).await)
            .await?;
        Ok(process)
    }
}

/// Downloads Kafka unless cached. Returns its class path.
pub(super) async fn class_path() -> Result<String> {
    let cached = format!("kafka-{}", Kafka::VERSION);
    let jars = fetch_jars("Apache Kafka", &cached, POM).await?;
    Ok(format!("{}/*", jars.display()))
}

/// Returns a Java program of Kafka, without its main class.
pub(super) fn java(name: &str, class_path: &str, jvm_options: &[&str]) -> Program {
    // Reads arguments, such as passwords, as UTF-8.
    let program = Program::new(name, "java").env("LC_ALL", "C.UTF-8");
    program.args(jvm_options).args([
        "-Xshare:auto",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-cp",
        class_path,
    ])
}

async fn fetch_metadata(brokers: &str) -> Result<()> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("log_level", "0")
        .create()?;
    tokio::task::spawn_blocking(move || {
        producer
            .client()
            .fetch_metadata(None, Duration::from_secs(1))
            .map(drop)
    })
    .await?
    .context("failed to fetch metadata")
}
