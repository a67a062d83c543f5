//! Shared by `bench` and `acceptance`: servers with a production-like configuration, a backlog, a steady load, the relay and
//! Kafka Connect as processes, and their resource usage.
#![expect(
    missing_docs,
    reason = "shared by two programs of this workspace, not a library"
)]

mod connect;
mod load;
mod machine;
mod relay;
mod table;
mod topic;
mod usage;

use std::{fs, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use devstack::{Kafka, Postgres, Servers, Sql, WorkDir, step};
use diesel_async::{AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::MigrationHarness as _;

pub use self::{
    connect::{Connect, Installation, with_database},
    load::{Change, Plan, WriteStats, Writers, due_us, unix_us},
    machine::Machine,
    relay::{ConfiguredRelay, Relay},
    table::Table,
    topic::{EndOffsets, PARTITIONS, Topic},
    usage::{Cpu, Processes, cpu_s, family_cpu_s, peak_rss_mib, per},
};

const FILL: &str = include_str!("fill.sql");
const ROLE: &str = include_str!("../../../outbox-relay/sql/role.sql");
/// The default `shared_buffers` are for very small machines, and with the default `max_wal_size` checkpoints would happen
/// during a run.
const POSTGRES_SETTINGS: [&str; 3] = [
    "shared_buffers=512MB",
    "max_wal_size=4GB",
    "shared_preload_libraries=pg_stat_statements",
];
/// The options of Kafka's own scripts. Those of the tests start quickly but limit the JIT compiler.
const KAFKA_JVM: [&str; 3] = ["-Xms256m", "-Xmx1g", "-XX:+UseG1GC"];

/// The role of the relay, whose statements `pg_stat_statements` therefore shows separately.
pub const RELAY_ROLE: &str = "outbox_relay";

/// The payload size of most measurements.
pub const PAYLOAD_BYTES: u32 = 200;
/// The number of headers on every record of a row with a traceparent.
pub const BASE_HEADERS: u32 = 8;

/// Servers with an outbox database and a topic.
pub struct Lab {
    pub servers: Servers,
    pub database_url: String,
    /// The same database for the relay.
    pub relay_database_url: String,
    pub topic: Topic,
}

/// The size and shape of a backlog.
#[derive(Clone, Debug)]
pub struct Backlog {
    pub rows: u64,
    pub payload_bytes: u32,
    /// Headers in addition to [`BASE_HEADERS`].
    pub further_headers: u32,
}

/// Postgres' `wal_level`.
#[derive(Clone, Copy, PartialEq)]
pub enum WalLevel {
    /// The default.
    Replica,
    /// Required by Debezium.
    Logical,
}

impl Lab {
    pub async fn start(wal_level: WalLevel) -> Result<Self> {
        let mut settings = POSTGRES_SETTINGS.to_vec();
        if wal_level == WalLevel::Logical {
            settings.push("wal_level=logical");
        }
        let work_dir = Arc::new(WorkDir::new()?);
        let starting = async {
            tokio::try_join!(
                Postgres::start(&work_dir, &settings),
                Kafka::start_with_jvm(&work_dir, &KAFKA_JVM)
            )
        };
        let (postgres, kafka) = step("starting Postgres and Apache Kafka", starting).await?;
        let servers = Servers {
            work_dir,
            postgres,
            kafka,
        };
        let database_url = servers.addresses().create_database("bench").await?;
        let connection = AsyncPgConnection::establish(&database_url).await?;
        AsyncMigrationHarness::new(connection)
            .run_pending_migrations(outbox::MIGRATIONS)
            .map_err(anyhow::Error::from_boxed)?;
        let topic = Topic {
            brokers: servers.kafka.brokers().to_owned(),
            name: "bench.v1".to_owned(),
        };
        let (_, place) = database_url
            .split_once('@')
            .context("a URL with a password")?;
        let lab = Self {
            servers,
            relay_database_url: format!("postgres://{RELAY_ROLE}:{RELAY_ROLE}@{place}"),
            database_url,
            topic,
        };
        let sql = lab.sql().await?;
        sql.batch_execute(FILL).await?;
        sql.batch_execute(ROLE).await?;
        let sql_of_role = format!(
            "alter role {RELAY_ROLE} password '{RELAY_ROLE}'; create extension pg_stat_statements"
        );
        sql.batch_execute(&sql_of_role).await?;
        Ok(lab)
    }

    pub async fn stop(self) {
        self.servers.stop().await;
    }

    /// Opens a database session.
    pub async fn sql(&self) -> Result<Sql> {
        Sql::connect(&self.database_url).await
    }

    /// Returns the processes whose CPU is measured while `publisher` publishes.
    pub fn processes(&self, publisher: u32) -> Result<Processes> {
        Ok(Processes {
            publisher,
            postgres: self
                .servers
                .postgres
                .process
                .pid()
                .context("Postgres is not running")?,
            broker: self
                .servers
                .kafka
                .process
                .pid()
                .context("the broker is not running")?,
        })
    }

    /// Returns the size of the topic's partitions on the broker's disk, without indexes.
    pub fn topic_bytes(&self) -> Result<u64> {
        let prefix = format!("{}-", self.topic.name);
        let mut bytes = 0;
        for partition in fs::read_dir(self.servers.work_dir.path().join("kafka"))? {
            let partition = partition?;
            let name = partition.file_name();
            let name = name.to_string_lossy();
            // The folder of a deleted partition has a longer name, and is deleted a minute later.
            let number = name.strip_prefix(&prefix);
            if number.is_none_or(|number| number.parse::<u32>().is_err()) {
                continue;
            }
            for file in fs::read_dir(partition.path())? {
                let file = file?;
                if file
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "log")
                {
                    bytes += file.metadata()?.len();
                }
            }
        }
        Ok(bytes)
    }

    /// Truncates the outbox and flushes all dirty pages. Otherwise the kernel would write back a gigabyte of Kafka's data
    /// half a minute later and delay every measured commit.
    pub async fn truncate_outbox(&self) -> Result<()> {
        let sql = self.sql().await?;
        sql.batch_execute("truncate outbox").await?;
        sql.batch_execute("checkpoint").await?;
        tokio::task::spawn_blocking(rustix::fs::sync).await?;
        Ok(())
    }

    /// Replaces the rows of the outbox with a backlog.
    pub async fn write_backlog(&self, backlog: &Backlog) -> Result<()> {
        let rows = i64::try_from(backlog.rows)?;
        let payload_bytes = i32::try_from(backlog.payload_bytes)?;
        let headers = further_headers(backlog.further_headers);
        let filling = async {
            self.truncate_outbox().await?;
            let sql = self.sql().await?;
            let call = "call fill_outbox($1, $2, $3, $4::text::jsonb)";
            let topic = &self.topic.name;
            sql.execute(call, &[&rows, topic, &payload_bytes, &headers])
                .await?;
            // Vacuum and checkpoint now rather than during a run.
            sql.batch_execute("vacuum (analyze) outbox").await?;
            sql.batch_execute("checkpoint").await?;
            let found = sql.count("select count(*) from outbox").await?;
            ensure!(
                found == rows,
                "expected {rows} rows in the outbox, found {found}"
            );
            Ok(())
        };
        step(
            &format!("writing a backlog of {} rows", backlog.rows),
            filling,
        )
        .await
    }
}

/// Returns the value of the column `headers`; null if there are no headers.
fn further_headers(count: u32) -> Option<String> {
    let header = |number| (format!("header-{number}"), "sixteen-letters-".into());
    let headers: serde_json::Map<_, _> = (1..=count).map(header).collect();
    (count > 0).then(|| serde_json::Value::Object(headers).to_string())
}
