use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{BaseProducer, Producer as _},
};

use crate::{
    home::Home,
    maven::fetch_jars,
    ports::free_port,
    processes::{Process, Program},
};

const POM: &str = include_str!("../kafka/pom.xml");
const PROPERTIES: &str = include_str!("../kafka/server.properties");
/// Quick to start and small, which is what tests want of it.
const LIGHT_JVM: [&str; 3] = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
const START_TIMEOUT: Duration = Duration::from_secs(60);

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
        Self::start_with(home, &LIGHT_JVM).await
    }

    /// The same, on a virtual machine with these options.
    ///
    /// # Errors
    /// As of [`start`](Self::start).
    pub async fn start_with(home: &Arc<Home>, jvm_options: &[&str]) -> Result<Self> {
        let cached = format!("kafka-{}", Self::VERSION);
        let jars = fetch_jars("Apache Kafka", &cached, POM).await?;
        let class_path = format!("{}/*", jars.display());
        let (port, controller_port) = (free_port()?, free_port()?);
        let data = home.path().join("kafka");
        let properties = PROPERTIES
            .replace("@PORT@", &port.to_string())
            .replace("@CONTROLLER_PORT@", &controller_port.to_string())
            .replace("@DATA@", &data.display().to_string());
        let properties = home.write("kafka.properties", &properties)?;
        let java = |name| {
            Program::new(name, "java").args(jvm_options).args([
                "-Xshare:auto",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "-cp",
                &class_path,
            ])
        };
        java("kafka-format")
            .args([
                "kafka.tools.StorageTool",
                "format",
                "-t",
                "devstack-cluster-id-00",
                "-c",
            ])
            .args([&properties])
            .run_once(home)
            .await?;
        let process = Process::start(
            home,
            java("kafka").args(["kafka.Kafka"]).args([&properties]),
        );
        let brokers = format!("127.0.0.1:{port}");
        process
            .wait_ready(START_TIMEOUT, async || ask_for_metadata(&brokers).await)
            .await?;
        Ok(Self { process, brokers })
    }

    /// The addresses of the brokers, as clients want them.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }
}

/// Makes a topic; `cleanup_policy` is `compact` or `delete`. One that exists is left as it is.
pub(crate) async fn create_topic(
    brokers: &str,
    topic: &str,
    partitions: i32,
    cleanup_policy: &str,
) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let new_topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1))
        .set("cleanup.policy", cleanup_policy);
    let timeout = Some(Duration::from_secs(20));
    let options = AdminOptions::new()
        .operation_timeout(timeout)
        .request_timeout(timeout);
    for result in admin.create_topics([&new_topic], &options).await? {
        match result {
            Ok(_) | Err((_, rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(anyhow!("can't create topic {topic}: {code}")),
        }
    }
    Ok(())
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
