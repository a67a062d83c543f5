use std::{
    collections::BTreeMap,
    env,
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    kafka::{self, Kafka},
    postgres::Postgres,
    progress::step,
    records::{NewRecord, Record, read_topic, write_records},
    sql::Sql,
    work_dir::WorkDir,
};

/// The superuser's URL of a running Postgres, with a database.
const POSTGRES_VARIABLE: &str = "DEVSTACK_POSTGRES_URL";
/// The addresses of running brokers.
const KAFKA_VARIABLE: &str = "DEVSTACK_KAFKA_BROKERS";
/// Parameters of each created database, as `name=value,name=value`: the tests run under conditions that users have.
const SETTINGS_VARIABLE: &str = "DEVSTACK_DATABASE_SETTINGS";

/// The configuration of a compacted topic. Overwritten records, such as those of a deleted user, are removed a day later with
/// the next record of their partition; without `max.compaction.lag.ms` they could stay forever. Tombstones stay for a
/// week, the time that a consumer may be down.
const COMPACTED: [(&str, &str); 3] = [
    ("cleanup.policy", "compact"),
    ("max.compaction.lag.ms", "86400000"),
    ("delete.retention.ms", "604800000"),
];
/// The configuration of a dead-letter topic. Not compacted, because the key of a poison record is meaningless. Retention
/// deletes whole segments, so records are deleted at most a day after the week.
const DEAD_LETTERS: [(&str, &str); 3] = [
    ("cleanup.policy", "delete"),
    ("retention.ms", "604800000"),
    ("segment.ms", "86400000"),
];

/// A temporary Postgres and Kafka.
#[derive(Debug)]
pub struct Servers {
    pub work_dir: Arc<WorkDir>,
    pub postgres: Postgres,
    pub kafka: Kafka,
}

impl Servers {
    /// Starts both; `settings` are configuration parameters of Postgres.
    ///
    /// # Errors
    /// If one is not installed, or fails to start.
    pub async fn start(settings: &[&str]) -> Result<Self> {
        Self::start_with(settings, &[]).await
    }

    /// Like [`start`](Self::start), with lines for the broker's configuration.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(settings: &[&str], broker_settings: &[&str]) -> Result<Self> {
        let work_dir = Arc::new(WorkDir::new()?);
        let starting = async {
            let kafka = Kafka::start_with_settings(&work_dir, broker_settings);
            tokio::try_join!(Postgres::start(&work_dir, settings), kafka)
        };
        let (postgres, kafka) = step("starting Postgres and Apache Kafka", starting).await?;
        Ok(Self {
            work_dir,
            postgres,
            kafka,
        })
    }

    pub fn addresses(&self) -> Addresses {
        Addresses {
            postgres_url: self.postgres.admin_url().to_owned(),
            brokers: self.kafka.brokers().to_owned(),
        }
    }

    /// Stops both servers.
    pub async fn stop(self) {
        tokio::join!(self.kafka.process.stop(), self.postgres.process.stop());
    }
}

/// The addresses of a Postgres and a Kafka. All tests of a run share them; each test creates its own databases and topics.
#[derive(Clone, Debug)]
pub struct Addresses {
    postgres_url: String,
    brokers: String,
}

impl Addresses {
    /// Returns the servers named by `DEVSTACK_POSTGRES_URL` and `DEVSTACK_KAFKA_BROKERS`, or starts servers that run as
    /// long as this process.
    ///
    /// # Panics
    /// If the servers fail to start.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Addresses> = OnceLock::new();
        SHARED.get_or_init(|| Self::from_variables().unwrap_or_else(Self::start_for_this_process))
    }

    /// Returns the same Postgres with another Kafka.
    pub fn with_brokers(&self, brokers: &str) -> Self {
        Self {
            postgres_url: self.postgres_url.clone(),
            brokers: brokers.to_owned(),
        }
    }

    /// Returns the environment variables with which another process uses these servers.
    pub fn variables(&self) -> [(&'static str, &str); 2] {
        [
            (POSTGRES_VARIABLE, &self.postgres_url),
            (KAFKA_VARIABLE, &self.brokers),
        ]
    }

    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Creates a database with the parameters in `DEVSTACK_DATABASE_SETTINGS`, and returns the superuser's URL of it.
    ///
    /// # Errors
    /// If Postgres returns an error, or the variable is malformed.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        let client = Sql::connect(&self.postgres_url).await?;
        client
            .batch_execute(&format!("create database \"{name}\""))
            .await?;
        let (server, _) = self
            .postgres_url
            .rsplit_once('/')
            .context("a URL has a path")?;
        let url = format!("{server}/{name}");
        if let Ok(settings) = env::var(SETTINGS_VARIABLE) {
            let database = Sql::connect(&url).await?;
            for (name, value) in parse_settings(&settings)? {
                database.set_database_default(name, value).await?;
            }
        }
        Ok(url)
    }

    /// Creates a compacted topic.
    ///
    /// # Errors
    /// If the broker returns an error.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        kafka::create_topic(&self.brokers, name, partitions, 1, &COMPACTED).await
    }

    /// Creates a dead-letter topic, which retains records for a week.
    ///
    /// # Errors
    /// If the broker returns an error.
    pub async fn create_dead_letter_topic(&self, name: &str) -> Result<()> {
        kafka::create_topic(&self.brokers, name, 1, 1, &DEAD_LETTERS).await
    }

    /// Deletes a topic. The deletion completes some time after this returns.
    ///
    /// # Errors
    /// If the broker returns an error.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        kafka::delete_topic(&self.brokers, name).await
    }

    /// Replaces the configuration of a topic.
    ///
    /// # Errors
    /// If the broker returns an error.
    pub async fn alter_topic(&self, name: &str, configs: &[(&str, &str)]) -> Result<()> {
        kafka::alter_topic(&self.brokers, name, configs).await
    }

    /// Returns the number of partitions and the configuration of a topic.
    ///
    /// # Errors
    /// If the topic does not exist, or the broker does not respond.
    pub async fn describe_topic(&self, name: &str) -> Result<(usize, BTreeMap<String, String>)> {
        kafka::describe_topic(&self.brokers, name).await
    }

    /// Returns the names of all topics, including internal ones.
    ///
    /// # Errors
    /// If the broker does not respond.
    pub async fn topic_names(&self) -> Result<Vec<String>> {
        kafka::topic_names(&self.brokers).await
    }

    /// Returns how many members of a consumer group have partitions; 0 while the group rebalances.
    ///
    /// # Errors
    /// If the broker does not respond.
    pub async fn count_assigned_members(&self, group: &str) -> Result<usize> {
        kafka::count_assigned_members(&self.brokers, group).await
    }

    /// Deletes the records of a partition before an offset, as retention does.
    ///
    /// # Errors
    /// If the broker returns an error.
    pub async fn delete_records_before(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<()> {
        kafka::delete_records_before(&self.brokers, topic, partition, offset).await
    }

    /// Increases the partition count of a topic to `total`.
    ///
    /// # Errors
    /// If the broker returns an error.
    pub async fn add_partitions(&self, name: &str, total: usize) -> Result<()> {
        kafka::add_partitions(&self.brokers, name, total).await
    }

    /// Writes a record, and waits for the acknowledgement.
    ///
    /// # Errors
    /// If the broker rejects the record or does not respond.
    pub async fn write_record(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: &[(&str, &str)],
    ) -> Result<()> {
        let record = NewRecord {
            key,
            payload,
            headers,
            ..NewRecord::default()
        };
        self.write_records(topic, &[record]).await
    }

    /// Writes records, in order per partition, and waits for the acknowledgements.
    ///
    /// # Errors
    /// If the broker rejects a record or does not respond.
    pub async fn write_records(&self, topic: &str, records: &[NewRecord<'_>]) -> Result<()> {
        write_records(&self.brokers, topic, records).await
    }

    /// Reads all records of a topic.
    ///
    /// # Errors
    /// If the topic does not exist, or the broker does not respond.
    pub async fn read_topic(&self, name: &str) -> Result<Vec<Record>> {
        read_topic(&self.brokers, name).await
    }

    /// Returns a unique prefix for the names of databases and topics.
    pub fn unique_name(test: &str) -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        format!("{test}_{}", &id[..8])
    }

    fn from_variables() -> Option<Self> {
        Some(Self {
            postgres_url: env::var(POSTGRES_VARIABLE).ok()?,
            brokers: env::var(KAFKA_VARIABLE).ok()?,
        })
    }

    /// Runs the servers on a separate thread: the runtime of a test ends with the test.
    fn start_for_this_process() -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                // Tests do not need durable commits.
                let servers = Servers::start(&["fsync=off"]).await;
                let _ = sender.send(
                    servers
                        .as_ref()
                        .map(Servers::addresses)
                        .map_err(|err| anyhow!("{err:#}")),
                );
                // The guard of the work directory stops them after this process has ended.
                std::future::pending::<()>().await;
            });
        });
        match receiver
            .recv()
            .context("failed to start a runtime")
            .flatten()
        {
            Ok(servers) => servers,
            Err(err) => panic!("failed to start servers for tests: {err:#}"),
        }
    }
}

fn parse_settings(settings: &str) -> Result<Vec<(&str, &str)>> {
    let mut parsed = Vec::new();
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let pair = setting.split_once('=');
        parsed.push(pair.with_context(|| format!("{SETTINGS_VARIABLE}: no value in {setting}"))?);
    }
    Ok(parsed)
}
