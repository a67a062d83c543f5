//! Debezium's connector for Postgres with its outbox event router, in Kafka Connect standalone.

use std::fs;

use anyhow::{Context as _, Result};
use devstack::{eventually, step};
use lab::{Connect, Installation, Lab, with_database};

use crate::drain::{self, CpuFrom, Drain};

const CONNECTOR: &str = include_str!("../debezium/connector.properties");
const TUNED: &str = include_str!("../debezium/tuned.properties");

/// Adds the row's timestamp as the header that the consumer also reads from the relay's records.
const TIME_HEADER: &str =
    "transforms.outbox.table.fields.additional.placement=created_at:header:ce_time\n";

const SLOT: &str = "bench_debezium";
/// A slot that stays at the position before the backlog. Each run reads from a copy of it.
const KEPT_SLOT: &str = "bench_kept";
const KEPT_OFFSETS: &str = "connect.offsets.kept";

/// A configuration of Debezium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tuning {
    /// Default settings with acks=all and idempotence.
    Defaults,
    /// For throughput: larger batches and queues.
    Drain,
    /// For latency: the same without linger.
    Latency,
}

/// Debezium, which can be run repeatedly on the same rows.
pub(crate) struct Connector {
    installation: Installation,
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
    /// Installs Debezium and publishes one row, so that its position before the backlog can be restored.
    pub(crate) async fn prepare(lab: &Lab) -> Result<Self> {
        let installation = Installation::fetch(&lab.servers.work_dir, &lab.topic.brokers).await?;
        let connector = Self { installation };
        let preparing = async {
            let sql = lab.sql().await?;
            // Publishes inserts only, and the rows of all partitions as rows of the outbox.
            sql.batch_execute(
                "create publication bench_debezium for table outbox
                     with (publish = 'insert', publish_via_partition_root = true)",
            )
            .await?;
            let keep = "select pg_create_logical_replication_slot($1, 'pgoutput')";
            sql.query(keep, &[&KEPT_SLOT]).await?;
            connector.restart(lab, Tuning::Drain).await?.stop().await?;
            let kept = lab.servers.work_dir.path().join(KEPT_OFFSETS);
            fs::copy(connector.installation.offsets(), kept)
                .context("Connect stored no offsets")?;
            Ok::<_, anyhow::Error>(())
        };
        step("letting Debezium publish a first row", preparing).await?;
        Ok(connector)
    }

    /// Publishes all rows after the first one.
    pub(crate) async fn drain(&self, lab: &Lab, rows: u64, tuning: Tuning) -> Result<Drain> {
        let draining = async {
            lab.topic.recreate().await?;
            drop_slots(lab, &[SLOT]).await?;
            let copy = "select pg_copy_logical_replication_slot($1, $2)";
            lab.sql().await?.query(copy, &[&KEPT_SLOT, &SLOT]).await?;
            let kept = lab.servers.work_dir.path().join(KEPT_OFFSETS);
            // Overwrites the file that Connect created, which keeps its owner.
            fs::copy(kept, self.installation.offsets())?;
            let ends = drain::open_ends(lab).await?;
            let running = self.start(lab, tuning).await?;
            let drain = drain::watch(lab, ends, rows, running.pid(), CpuFrom::FirstRecord).await?;
            running.stop().await?;
            drain::check_total(lab, rows).await?;
            Ok::<_, anyhow::Error>(drain)
        };
        step(&format!("draining, {}", tuning.name()), draining).await
    }

    /// Starts Debezium without offsets, and waits until it publishes new rows.
    pub(crate) async fn restart(&self, lab: &Lab, tuning: Tuning) -> Result<Connect> {
        lab.topic.recreate().await?;
        drop_slots(lab, &[SLOT]).await?;
        // The file does not exist the first time.
        let _ = fs::remove_file(self.installation.offsets());
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
            Ok((drain::count_records(lab).await? == 1).then_some(()))
        })
        .await
        .with_context(|| format!("see {}", self.installation.log().display()))?;
        Ok(running)
    }

    /// Drops the replication slots.
    pub(crate) async fn drop_slots(&self, lab: &Lab) -> Result<()> {
        drop_slots(lab, &[SLOT, KEPT_SLOT]).await
    }

    async fn start(&self, lab: &Lab, tuning: Tuning) -> Result<Connect> {
        let connector = with_database(CONNECTOR, &lab.database_url)?
            .replace("@TOPIC@", &lab.topic.name)
            + &tuning.properties();
        let installation = &self.installation;
        installation.start(&connector, "", tuning.heap()).await
    }
}

/// Drops the existing slots as soon as no process reads them.
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
