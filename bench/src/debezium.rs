//! Debezium's connector for Postgres with its outbox event router, in Kafka Connect standalone.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use devstack::{Process, Program, eventually, fetch_jars, free_port, step};
use tokio_postgres::config::Host;

use crate::{
    drain::{self, CpuFrom, Drain},
    lab::Lab,
};

const POM: &str = include_str!("../debezium/pom.xml");
const WORKER: &str = include_str!("../debezium/worker.properties");
const CONNECTOR: &str = include_str!("../debezium/connector.properties");
const TUNED: &str = include_str!("../debezium/tuned.properties");
const LOG: &str = include_str!("../debezium/log4j2.properties");

/// The consumer reads when the row was written from a header, as it does from the relay's records.
const TIME_HEADER: &str =
    "transforms.outbox.table.fields.additional.placement=created_at:header:ce_time\n";
/// Connect's own scripts set these, but for the heap.
const JVM: [&str; 6] = [
    "-server",
    "-Xms256m",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-Djava.awt.headless=true",
];

const SLOT: &str = "bench_debezium";
/// A slot that stays in front of the backlog; each run reads through a copy of it.
const KEPT_SLOT: &str = "bench_kept";
const OFFSETS: &str = "connect.offsets";
const KEPT_OFFSETS: &str = "connect.offsets.kept";
const LOG_NAME: &str = "connect";

/// How it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tuning {
    /// As it comes, but for acks=all and idempotence.
    Defaults,
    /// For throughput: larger batches and queues.
    Drain,
    /// For latency: the same, and no waiting for a batch to fill.
    Latency,
}

/// What can be started again and again on the same rows.
pub(crate) struct Connector {
    jars: PathBuf,
}

/// Kafka Connect as a process of its own.
pub(crate) struct Running {
    process: Process,
    pid: u32,
}

impl Tuning {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Defaults => "Debezium, defaults",
            Self::Drain => "Debezium, tuned",
            Self::Latency => "Debezium, tuned for latency",
        }
    }

    fn properties(self) -> String {
        match self {
            Self::Defaults => String::new(),
            Self::Drain => format!("{TUNED}producer.override.linger.ms=5\n"),
            Self::Latency => format!("{TUNED}producer.override.linger.ms=0\n{TIME_HEADER}"),
        }
    }

    fn heap(self) -> &'static str {
        match self {
            Self::Defaults => "-Xmx2g",
            Self::Drain | Self::Latency => "-Xmx1g",
        }
    }
}

impl Connector {
    /// The version in the pom.
    pub(crate) const VERSION: &str = "3.7.0.Final";

    /// Fetches it, and lets it ship one row, so that it knows where it was before the backlog comes.
    pub(crate) async fn prepare(lab: &Lab) -> Result<Self> {
        debug_assert!(POM.contains(Self::VERSION));
        let cached = format!("debezium-{}-connect-4.3.1", Self::VERSION);
        let jars = fetch_jars("Kafka Connect and Debezium", &cached, POM).await?;
        let connector = Self { jars };
        let preparing = async {
            let sql = lab.sql().await?;
            // Rows of all partitions as rows of the outbox, and nothing but them.
            sql.batch_execute(
                "create publication bench_debezium for table outbox
                     with (publish = 'insert', publish_via_partition_root = true)",
            )
            .await?;
            let keep = "select pg_create_logical_replication_slot($1, 'pgoutput')";
            sql.query(keep, &[&KEPT_SLOT]).await?;
            connector
                .start_anew(lab, Tuning::Drain)
                .await?
                .stop()
                .await?;
            let home = lab.servers.home.path();
            fs::copy(home.join(OFFSETS), home.join(KEPT_OFFSETS))
                .context("Connect has not stored where it is")?;
            Ok::<_, anyhow::Error>(())
        };
        step("letting Debezium ship a first row", preparing).await?;
        Ok(connector)
    }

    /// Lets it ship all rows that came after the first one.
    pub(crate) async fn drain(&self, lab: &Lab, rows: u64, tuning: Tuning) -> Result<Drain> {
        let draining = async {
            lab.topic.recreate().await?;
            drop_slots(lab, &[SLOT]).await?;
            let copy = "select pg_copy_logical_replication_slot($1, $2)";
            lab.sql().await?.query(copy, &[&KEPT_SLOT, &SLOT]).await?;
            let home = lab.servers.home.path();
            // Over the file that Connect has made, for that stays its own.
            fs::copy(home.join(KEPT_OFFSETS), home.join(OFFSETS))?;
            let ends = drain::look(lab).await?;
            let running = self.start(lab, tuning).await?;
            let drain = drain::watch(lab, ends, rows, running.pid, CpuFrom::FirstRecord).await?;
            running.stop().await?;
            drain::check_total(lab, rows).await?;
            Ok::<_, anyhow::Error>(drain)
        };
        step(&format!("draining, {}", tuning.name()), draining).await
    }
    /// Starts it with no memory, and waits until it ships what is written from now on.
    pub(crate) async fn start_anew(&self, lab: &Lab, tuning: Tuning) -> Result<Running> {
        lab.topic.recreate().await?;
        drop_slots(lab, &[SLOT]).await?;
        // There is none the first time.
        let _ = fs::remove_file(lab.servers.home.path().join(OFFSETS));
        let running = self.start(lab, tuning).await?;
        let sql = lab.sql().await?;
        let reading = format!(
            "select count(*) from pg_replication_slots where slot_name = '{SLOT}' and active"
        );
        sql.wait_for(&reading, 1).await?;
        let probe = "insert into outbox (topic, key, event_type, aggregate_version, payload)
                     values ($1, 'probe', 'probe', 1, '{}')";
        sql.execute(probe, &[&lab.topic.name]).await?;
        eventually("Debezium's first record", async || {
            Ok((drain::total(lab).await? == 1).then_some(()))
        })
        .await
        .with_context(|| format!("see {}", lab.servers.home.log(LOG_NAME).display()))?;
        Ok(running)
    }

    /// Lets Postgres forget what it keeps for further runs.
    pub(crate) async fn forget(&self, lab: &Lab) -> Result<()> {
        drop_slots(lab, &[SLOT, KEPT_SLOT]).await
    }

    async fn start(&self, lab: &Lab, tuning: Tuning) -> Result<Running> {
        let home = &lab.servers.home;
        let offsets = home.path().join(OFFSETS);
        let worker = WORKER
            .replace("@BROKERS@", &lab.topic.brokers)
            .replace("@PORT@", &free_port()?.to_string())
            .replace("@OFFSETS@", &offsets.display().to_string());
        let worker = home.write("connect-worker.properties", &worker)?;
        let connector = connector_properties(lab)? + &tuning.properties();
        let connector = home.write("connector.properties", &connector)?;
        let log = home.write("connect-log4j2.properties", LOG)?;
        let class_path = format!("{}/*", self.jars.display());
        let connect = Program::new(LOG_NAME, "java")
            .args(JVM)
            .args([tuning.heap()])
            .args([format!("-Dlog4j2.configurationFile={}", log.display())])
            .args(["-cp", &class_path])
            .args(["org.apache.kafka.connect.cli.ConnectStandalone"])
            .args([worker, connector]);
        let mut process = Process::start(home, connect);
        let pid = process.started().await?;
        Ok(Running { process, pid })
    }
}

impl Running {
    /// The id of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it as it is meant to end.
    pub(crate) async fn stop(self) -> Result<()> {
        let is_same = self.process.pid() == Some(self.pid);
        self.process.stop().await;
        ensure!(is_same, "Connect ended in the middle of the measurement");
        Ok(())
    }
}

fn connector_properties(lab: &Lab) -> Result<String> {
    let database: tokio_postgres::Config = lab.database_url.parse()?;
    let (Some(Host::Tcp(host)), Some(port)) =
        (database.get_hosts().first(), database.get_ports().first())
    else {
        bail!("the database has no address")
    };
    let password = String::from_utf8_lossy(database.get_password().unwrap_or_default());
    Ok(CONNECTOR
        .replace("@HOST@", host)
        .replace("@DATABASE_PORT@", &port.to_string())
        .replace("@USER@", database.get_user().unwrap_or_default())
        .replace("@PASSWORD@", &password)
        .replace("@DATABASE@", database.get_dbname().unwrap_or_default())
        .replace("@TOPIC@", &lab.topic.name))
}

/// Drops those that there are, as soon as nobody reads them any more.
async fn drop_slots(lab: &Lab, slots: &[&str]) -> Result<()> {
    let sql = lab.sql().await?;
    for slot in slots {
        let reading = format!(
            "select count(*) from pg_replication_slots where slot_name = '{slot}' and active"
        );
        sql.wait_for(&reading, 0).await?;
        let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                    where slot_name = $1";
        sql.query(drop, &[slot]).await?;
    }
    Ok(())
}
