use std::{
    env, fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{BaseProducer, Producer as _},
};
use tokio::process::Command;

use crate::{
    home::Home,
    ports::free_port,
    processes::{Process, Program},
    progress::step,
};

const POM: &str = include_str!("../kafka/pom.xml");
const PROPERTIES: &str = include_str!("../kafka/server.properties");
/// The version in the pom, which names the folder of the cache.
const VERSION: &str = "4.3.1";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// An Apache Kafka broker of its own, which is its own controller.
#[derive(Debug)]
pub struct Kafka {
    /// The running broker.
    pub process: Process,
    brokers: String,
}

impl Kafka {
    /// Fetches Kafka where it was not fetched before, and starts a broker in `home`.
    ///
    /// # Errors
    /// If there is no Java 17 or no Maven on this machine, or the broker doesn't start.
    pub async fn start(home: &Arc<Home>) -> Result<Self> {
        let class_path = format!("{}/*", fetch_jars().await?.display());
        let (port, controller_port) = (free_port()?, free_port()?);
        let data = home.path().join("kafka");
        let properties = PROPERTIES
            .replace("@PORT@", &port.to_string())
            .replace("@CONTROLLER_PORT@", &controller_port.to_string())
            .replace("@DATA@", &data.display().to_string());
        let properties = home.write("kafka.properties", &properties)?;
        let java = |name| {
            Program::new(name, "java")
                .args([
                    "-Xmx512m",
                    "-XX:+UseSerialGC",
                    "-XX:TieredStopAtLevel=1",
                    "-Xshare:auto",
                ])
                .args([
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

/// The folder with Kafka's jars, fetched from Maven Central once for this user (for everybody,
/// where root does it: the plain user who runs the broker must be able to read them).
async fn fetch_jars() -> Result<PathBuf> {
    let cache = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/cache")
    } else {
        env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set")?
    };
    let jars = cache.join(format!("devstack/kafka-{VERSION}"));
    if jars.is_dir() {
        return Ok(jars);
    }
    debug_assert!(POM.contains(VERSION));
    // Into a folder beside it first: a fetch that was cut off must not pass for a whole one.
    let partial = jars.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("can't make {}", partial.display()))?;
    fs::write(partial.join("pom.xml"), POM)?;
    step(
        "fetching Apache Kafka from Maven Central",
        run_maven(&partial),
    )
    .await?;
    match fs::rename(partial.join("jars"), &jars) {
        // Somebody else was faster.
        Err(_) if jars.is_dir() => {}
        result => result?,
    }
    fs::remove_dir_all(partial)?;
    Ok(jars)
}

async fn run_maven(folder: &std::path::Path) -> Result<()> {
    let started = Instant::now();
    let output = Command::new("mvn")
        .args(["--quiet", "--batch-mode", "dependency:copy-dependencies"])
        .args(["-DoutputDirectory=jars", "-DincludeScope=runtime"])
        .current_dir(folder)
        .kill_on_drop(true)
        .output()
        .await
        .context("can't run mvn: install the package maven")?;
    ensure!(
        output.status.success(),
        "mvn failed after {:.0?}:\n{}{}",
        started.elapsed(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(())
}
