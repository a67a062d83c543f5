use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, Producer as _},
};
use rustix::process::Signal;

use super::Kafka;
use crate::{
    home::Home,
    maven::fetch_jars,
    ports::free_port,
    processes::{Process, Program},
};

const POM: &str = include_str!("../../kafka/pom.xml");
const PROPERTIES: &str = include_str!("../../kafka/server.properties");
const CLUSTER_ID: &str = "devstack-cluster-id-00";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A broker that is a controller too, by itself or as one of several.
#[derive(Debug)]
pub(super) struct Node {
    id: usize,
    /// Of its log and its folder.
    name: String,
    port: u16,
    controller_port: u16,
    stop_signal: Signal,
    users: Vec<String>,
}

impl Node {
    /// A node on ports of its own.
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

    /// Has users that log in by SCRAM.
    pub(super) fn with_users(mut self, users: &[&str]) -> Self {
        self.users = users
            .iter()
            .map(|user| format!("--add-scram={user}"))
            .collect();
        self
    }

    /// Asks with another signal than SIGTERM for its end.
    pub(super) fn stopped_by(mut self, signal: Signal) -> Self {
        self.stop_signal = signal;
        self
    }

    /// Where clients find it.
    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How the controllers are told of it.
    pub(super) fn voter(&self) -> String {
        format!("{}@127.0.0.1:{}", self.id, self.controller_port)
    }

    /// Fetches Kafka where it was not fetched before, starts the node, and waits until it answers.
    /// `settings` are lines for its configuration, the last one of a name counts.
    pub(super) async fn start(
        &self,
        home: &Arc<Home>,
        jvm_options: &[&str],
        voters: &str,
        settings: &[&str],
    ) -> Result<Process> {
        let cached = format!("kafka-{}", Kafka::VERSION);
        let jars = fetch_jars("Apache Kafka", &cached, POM).await?;
        let class_path = format!("{}/*", jars.display());
        let data = home.path().join(&self.name);
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
        let properties = home.write(&format!("{}.properties", self.name), &properties)?;
        let java = |name: &str| {
            // So that arguments, such as passwords of users, are read as UTF-8.
            let program = Program::new(name, "java").env("LC_ALL", "C.UTF-8");
            program.args(jvm_options).args([
                "-Xshare:auto",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "-cp",
                &class_path,
            ])
        };
        java(&format!("{}-format", self.name))
            .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .args([&properties])
            .args(&self.users)
            .run_once(home)
            .await?;
        let program = java(&self.name)
            .args(["kafka.Kafka"])
            .args([&properties])
            .stopped_by(self.stop_signal);
        let process = Process::start(home, program);
        let address = self.address();
        process
            .wait_ready(START_TIMEOUT, async || ask_for_metadata(&address).await)
            .await?;
        Ok(process)
    }
}

async fn ask_for_metadata(brokers: &str) -> Result<()> {
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
    .context("no answer")
}
