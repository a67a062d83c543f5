//! What programs that measure or load the relay share: servers set up as for production, a backlog, a steady load, the
//! relay and Kafka Connect as processes of their own, and what they use of the machine.
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

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use devstack::{Home, Kafka, Postgres, Servers, Sql, step};
use diesel_async::{AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::MigrationHarness as _;

pub use self::{
    connect::{Connect, Installation, with_database},
    load::{Change, Plan, Writers, Written, due_us, unix_us},
    machine::Machine,
    relay::{Configured, Relay},
    table::Table,
    topic::{Ends, PARTITIONS, Topic},
    usage::{Cpu, Processes, cpu_s, family_cpu_s, peak_rss_mib, per},
};

const FILL: &str = include_str!("fill.sql");
/// The default of 128 MB is that of the smallest machine, and checkpoints every gigabyte of WAL
/// would come in the middle of a run.
const POSTGRES_SETTINGS: [&str; 2] = ["shared_buffers=512MB", "max_wal_size=4GB"];
/// The tests' broker starts quickly and never compiles well; this one is as its own scripts run it.
const KAFKA_JVM: [&str; 3] = ["-Xms256m", "-Xmx1g", "-XX:+UseG1GC"];

/// The payload of most measurements.
pub const PAYLOAD_BYTES: u32 = 200;
/// Those that each record of a row with a trace has.
pub const BASE_HEADERS: u32 = 8;

/// The servers that everything is measured on, with a database that has an outbox, and a topic.
pub struct Lab {
    pub servers: Servers,
    pub database_url: String,
    pub topic: Topic,
}

/// What the rows of a backlog are like.
#[derive(Clone, Debug)]
pub struct Backlog {
    pub rows: u64,
    pub payload_bytes: u32,
    /// Headers beside the eight that every record has.
    pub further_headers: u32,
}

/// What Postgres writes into its log.
#[derive(Clone, Copy, PartialEq)]
pub enum WalLevel {
    /// Postgres' default.
    Replica,
    /// What Debezium decodes.
    Logical,
}

impl Lab {
    /// Starts the servers.
    pub async fn start(wal_level: WalLevel) -> Result<Self> {
        let mut settings = POSTGRES_SETTINGS.to_vec();
        if wal_level == WalLevel::Logical {
            settings.push("wal_level=logical");
        }
        let home = Arc::new(Home::new()?);
        let starting = async {
            tokio::try_join!(
                Postgres::start(&home, &settings),
                Kafka::start_with(&home, &KAFKA_JVM)
            )
        };
        let (postgres, kafka) = step("starting Postgres and Apache Kafka", starting).await?;
        let servers = Servers {
            home,
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
        let lab = Self {
            servers,
            database_url,
            topic,
        };
        lab.sql().await?.batch_execute(FILL).await?;
        Ok(lab)
    }

    /// Ends the servers.
    pub async fn stop(self) {
        self.servers.stop().await;
    }

    /// A session with the database.
    pub async fn sql(&self) -> Result<Sql> {
        Sql::connect(&self.database_url).await
    }

    /// The processes to look at while `publisher` publishes.
    pub fn processes(&self, publisher: u32) -> Result<Processes> {
        Ok(Processes {
            publisher,
            postgres: self.servers.postgres.process.pid().context("no Postgres")?,
            broker: self.servers.kafka.process.pid().context("no broker")?,
        })
    }

    /// Empties the outbox, and has everything written that was put off: half a minute later the kernel
    /// writes back a gigabyte of Kafka's, and every commit that is measured then waits behind it.
    pub async fn empty(&self) -> Result<()> {
        let sql = self.sql().await?;
        sql.batch_execute("truncate outbox").await?;
        sql.batch_execute("checkpoint").await?;
        tokio::task::spawn_blocking(rustix::fs::sync).await?;
        Ok(())
    }

    /// Replaces what is in the outbox.
    pub async fn fill(&self, backlog: &Backlog) -> Result<()> {
        let rows = i64::try_from(backlog.rows)?;
        let payload_bytes = i32::try_from(backlog.payload_bytes)?;
        let headers = further_headers(backlog.further_headers);
        let filling = async {
            self.empty().await?;
            let sql = self.sql().await?;
            let call = "call fill_outbox($1, $2, $3, $4::text::jsonb)";
            let topic = &self.topic.name;
            sql.execute(call, &[&rows, topic, &payload_bytes, &headers])
                .await?;
            // What vacuum and the checkpointer would do sooner or later must not come in the middle
            // of a run.
            sql.batch_execute("vacuum (analyze) outbox").await?;
            sql.batch_execute("checkpoint").await?;
            let found = sql.count("select count(*) from outbox").await?;
            ensure!(found == rows, "{found} rows in the outbox");
            Ok(())
        };
        step(
            &format!("writing a backlog of {} rows", backlog.rows),
            filling,
        )
        .await
    }
}

/// What the column `headers` says; null if there are none.
fn further_headers(count: u32) -> Option<String> {
    let header = |number| (format!("header-{number}"), "sixteen-letters-".into());
    let headers: serde_json::Map<_, _> = (1..=count).map(header).collect();
    (count > 0).then(|| serde_json::Value::Object(headers).to_string())
}
