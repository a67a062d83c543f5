//! Kafka Connect in standalone mode, with Debezium's Postgres connector.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use devstack::{Process, Program, WorkDir, fetch_jars, free_port};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_postgres::config::Host;

const POM: &str = include_str!("../debezium/pom.xml");
const WORKER: &str = include_str!("../debezium/worker.properties");
const LOG: &str = include_str!("../debezium/log4j2.properties");

/// The options of Connect's own scripts, except the heap size.
const JVM: [&str; 6] = [
    "-server",
    "-Xms256m",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-Djava.awt.headless=true",
];
const LOG_NAME: &str = "connect";
const OFFSETS: &str = "connect.offsets";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The JARs of Kafka Connect and Debezium, and the offsets file.
pub struct Installation {
    work_dir: Arc<WorkDir>,
    jars: PathBuf,
    brokers: String,
}

/// A running Kafka Connect process.
pub struct Connect {
    process: Process,
    pid: u32,
    rest_port: u16,
}

impl Installation {
    /// The version in the POM.
    pub const VERSION: &str = "3.7.0.Final";

    /// Downloads the JARs unless cached.
    pub async fn fetch(work_dir: &Arc<WorkDir>, brokers: &str) -> Result<Self> {
        debug_assert!(POM.contains(Self::VERSION));
        let cached = format!("debezium-{}-connect-4.3.1", Self::VERSION);
        Ok(Self {
            work_dir: Arc::clone(work_dir),
            jars: fetch_jars("Kafka Connect and Debezium", &cached, POM).await?,
            brokers: brokers.to_owned(),
        })
    }

    /// The path of `offset.storage.file.filename`.
    pub fn offsets(&self) -> PathBuf {
        self.work_dir.path().join(OFFSETS)
    }

    pub fn log(&self) -> PathBuf {
        self.work_dir.log(LOG_NAME)
    }

    /// Starts Connect with a connector configuration and additional lines for the worker configuration.
    pub async fn start(&self, connector: &str, worker: &str, heap: &str) -> Result<Connect> {
        let (work_dir, rest_port) = (&self.work_dir, free_port()?);
        let always = WORKER
            .replace("@BROKERS@", &self.brokers)
            .replace("@PORT@", &rest_port.to_string())
            .replace("@OFFSETS@", &self.offsets().display().to_string());
        let worker = work_dir.write("connect-worker.properties", &format!("{always}{worker}"))?;
        let connector = work_dir.write("connector.properties", connector)?;
        let log = work_dir.write("connect-log4j2.properties", LOG)?;
        let class_path = format!("{}/*", self.jars.display());
        let connect = Program::new(LOG_NAME, "java")
            .args(JVM)
            .args([heap])
            .args([format!("-Dlog4j2.configurationFile={}", log.display())])
            .args(["-cp", &class_path])
            .args(["org.apache.kafka.connect.cli.ConnectStandalone"])
            .args([worker, connector]);
        let mut process = Process::start(work_dir, connect);
        let pid = process.started().await?;
        Ok(Connect {
            process,
            pid,
            rest_port,
        })
    }
}

impl Connect {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a request to the REST API, and returns the whole HTTP response.
    pub async fn ask(&self, method: &str, path: &str) -> Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.rest_port)).await?;
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await?;
            let mut response = String::new();
            stream.read_to_string(&mut response).await?;
            Ok::<_, anyhow::Error>(response)
        };
        let response = tokio::time::timeout(REQUEST_TIMEOUT, exchange).await??;
        ensure!(
            response.starts_with("HTTP/1.1 2"),
            "{method} {path} failed, Kafka Connect responded: {response}"
        );
        Ok(response)
    }

    /// Stops the process gracefully.
    pub async fn stop(self) -> Result<()> {
        let is_same = self.process.pid() == Some(self.pid);
        self.process.stop().await;
        ensure!(is_same, "Kafka Connect exited during the measurement");
        Ok(())
    }
}

/// Fills the database's address into a connector configuration.
pub fn with_database(connector: &str, database_url: &str) -> Result<String> {
    let database: tokio_postgres::Config = database_url.parse()?;
    let (Some(Host::Tcp(host)), Some(port)) =
        (database.get_hosts().first(), database.get_ports().first())
    else {
        bail!("the database URL has no host and port")
    };
    let password = String::from_utf8_lossy(database.get_password().unwrap_or_default());
    Ok(connector
        .replace("@HOST@", host)
        .replace("@DATABASE_PORT@", &port.to_string())
        .replace("@USER@", database.get_user().unwrap_or_default())
        .replace("@PASSWORD@", &password)
        .replace(
            "@DATABASE@",
            database
                .get_dbname()
                .context("the database URL has no database name")?,
        ))
}
