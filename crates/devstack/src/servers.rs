use std::{
    collections::BTreeMap,
    env,
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    home::Home,
    kafka::{self, Kafka},
    postgres::Postgres,
    progress::step,
    records::{NewRecord, Record, read_topic, write_records},
    sql::Sql,
};

/// Where a Postgres is that already runs: its superuser's URL, with a database.
const POSTGRES_VARIABLE: &str = "DEVSTACK_POSTGRES_URL";
/// Where a Kafka is that already runs.
const KAFKA_VARIABLE: &str = "DEVSTACK_KAFKA_BROKERS";

/// Of a topic with one record a key. What was overwritten, as by a user's end, is gone a day later,
/// with the next record of its partition, however large the rest is; without this it could stay for
/// ever. A tombstone stays for a week: so long a follower may be away.
const COMPACTED: [(&str, &str); 3] = [
    ("cleanup.policy", "compact"),
    ("max.compaction.lag.ms", "86400000"),
    ("delete.retention.ms", "604800000"),
];
/// Of a topic for dead letters. They are not compacted, because the key of a broken record says
/// nothing. What is older than a week goes by whole segments: with these, a day later at most.
const DEAD_LETTERS: [(&str, &str); 3] = [
    ("cleanup.policy", "delete"),
    ("retention.ms", "604800000"),
    ("segment.ms", "86400000"),
];

/// A Postgres and a Kafka of this process's own.
#[derive(Debug)]
pub struct Servers {
    /// The folder that they live in.
    pub home: Arc<Home>,
    /// The database server.
    pub postgres: Postgres,
    /// The broker.
    pub kafka: Kafka,
}

impl Servers {
    /// Starts both; `settings` are lines for Postgres' configuration.
    ///
    /// # Errors
    /// If one of them is missing on this machine, or doesn't start.
    pub async fn start(settings: &[&str]) -> Result<Self> {
        Self::start_with(settings, &[]).await
    }

    /// The same, with lines for the broker's configuration too.
    ///
    /// # Errors
    /// As of [`start`](Self::start).
    pub async fn start_with(settings: &[&str], broker_settings: &[&str]) -> Result<Self> {
        let home = Arc::new(Home::new()?);
        let starting = async {
            let kafka = Kafka::start_with_settings(&home, broker_settings);
            tokio::try_join!(Postgres::start(&home, settings), kafka)
        };
        let (postgres, kafka) = step("starting Postgres and Apache Kafka", starting).await?;
        Ok(Self {
            home,
            postgres,
            kafka,
        })
    }

    /// Where they are.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            postgres_url: self.postgres.admin_url().to_owned(),
            brokers: self.kafka.brokers().to_owned(),
        }
    }

    /// Ends both, and clears their folder away.
    pub async fn stop(self) {
        tokio::join!(self.kafka.process.stop(), self.postgres.process.stop());
    }
}

/// Where a Postgres and a Kafka are. The tests of a run share them; each test makes databases and
/// topics of its own there.
#[derive(Clone, Debug)]
pub struct Addresses {
    postgres_url: String,
    brokers: String,
}

impl Addresses {
    /// The servers that the variables `DEVSTACK_POSTGRES_URL` and `DEVSTACK_KAFKA_BROKERS` name;
    /// without these, servers that are started now and live as long as this process.
    ///
    /// # Panics
    /// If they can't be started: a test can't go on.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Addresses> = OnceLock::new();
        SHARED.get_or_init(|| Self::from_variables().unwrap_or_else(Self::start_for_this_process))
    }

    /// The variables that let another process share these servers.
    pub fn variables(&self) -> [(&'static str, &str); 2] {
        [
            (POSTGRES_VARIABLE, &self.postgres_url),
            (KAFKA_VARIABLE, &self.brokers),
        ]
    }

    /// The addresses of the brokers.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// A new, empty database; the result is its URL, as the superuser.
    ///
    /// # Errors
    /// If the server rejects.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        let client = Sql::connect(&self.postgres_url).await?;
        client
            .batch_execute(&format!("create database \"{name}\""))
            .await?;
        let (server, _) = self
            .postgres_url
            .rsplit_once('/')
            .context("a URL has a path")?;
        Ok(format!("{server}/{name}"))
    }

    /// A new, compacted topic.
    ///
    /// # Errors
    /// If the broker rejects.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        kafka::create_topic(&self.brokers, name, partitions, 1, &COMPACTED).await
    }

    /// A new topic for dead letters, which are kept for a week.
    ///
    /// # Errors
    /// If the broker rejects.
    pub async fn create_dead_letter_topic(&self, name: &str) -> Result<()> {
        kafka::create_topic(&self.brokers, name, 1, 1, &DEAD_LETTERS).await
    }

    /// Deletes a topic. It is gone some time after this returns.
    ///
    /// # Errors
    /// If the broker rejects.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        kafka::delete_topic(&self.brokers, name).await
    }

    /// Gives a topic these configs, and no others.
    ///
    /// # Errors
    /// If the broker rejects.
    pub async fn alter_topic(&self, name: &str, configs: &[(&str, &str)]) -> Result<()> {
        kafka::alter_topic(&self.brokers, name, configs).await
    }

    /// How many partitions a topic has, and its configs.
    ///
    /// # Errors
    /// If the broker has no such topic or does not answer.
    pub async fn describe_topic(&self, name: &str) -> Result<(usize, BTreeMap<String, String>)> {
        kafka::describe_topic(&self.brokers, name).await
    }

    /// The names of all topics, those of Kafka itself included.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub async fn topic_names(&self) -> Result<Vec<String>> {
        kafka::topic_names(&self.brokers).await
    }

    /// Forgets the records of a partition before an offset, as a retention does.
    ///
    /// # Errors
    /// If the broker rejects.
    pub async fn delete_records_before(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<()> {
        kafka::delete_records_before(&self.brokers, topic, partition, offset).await
    }

    /// Gives a topic more partitions, so many in all.
    ///
    /// # Errors
    /// If the broker rejects.
    pub async fn add_partitions(&self, name: &str, in_all: usize) -> Result<()> {
        kafka::add_partitions(&self.brokers, name, in_all).await
    }

    /// Writes a record, and waits until the broker has it.
    ///
    /// # Errors
    /// If it rejects it.
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

    /// Writes records, those of a partition in this order, and waits until the broker has them.
    ///
    /// # Errors
    /// If it rejects one.
    pub async fn write_records(&self, topic: &str, records: &[NewRecord<'_>]) -> Result<()> {
        write_records(&self.brokers, topic, records).await
    }

    /// Everything that stands in a topic now.
    ///
    /// # Errors
    /// If the broker has no such topic or does not answer.
    pub async fn read_topic(&self, name: &str) -> Result<Vec<Record>> {
        read_topic(&self.brokers, name).await
    }

    /// A word that no other test uses, to begin the names of databases and topics with.
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

    /// On a thread of their own, because every test has a runtime that ends with it.
    fn start_for_this_process() -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                // What a test commits need not survive a power cut.
                let servers = Servers::start(&["fsync=off"]).await;
                let _ = sender.send(
                    servers
                        .as_ref()
                        .map(Servers::addresses)
                        .map_err(|err| anyhow!("{err:#}")),
                );
                // The guard of their folder ends them with this process.
                std::future::pending::<()>().await;
            });
        });
        match receiver.recv().context("no runtime").flatten() {
            Ok(servers) => servers,
            Err(err) => panic!("no servers to test with: {err:#}"),
        }
    }
}
