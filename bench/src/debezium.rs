//! Debezium's connector for Postgres with its outbox event router, in Kafka Connect standalone.

use std::fs;

use anyhow::{Context as _, Result};
use devstack::{eventually, step};
use lab::{Connect, Installation, Lab, with_database};

use crate::drain::{self, CpuFrom, Drain};

const CONNECTOR: &str = include_str!("../debezium/connector.properties");
const TUNED: &str = include_str!("../debezium/tuned.properties");

/// The consumer reads when the row was written from a header, as it does from the relay's records.
const TIME_HEADER: &str =
    "transforms.outbox.table.fields.additional.placement=created_at:header:ce_time\n";

const SLOT: &str = "bench_debezium";
/// A slot that stays in front of the backlog; each run reads through a copy of it.
const KEPT_SLOT: &str = "bench_kept";
const KEPT_OFFSETS: &str = "connect.offsets.kept";

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
    /// Fetches it, and lets it publish one row, so that it knows where it was before the backlog comes.
    pub(crate) async fn prepare(lab: &Lab) -> Result<Self> {
        let installation = Installation::fetch(&lab.servers.home, &lab.topic.brokers).await?;
        let connector = Self { installation };
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
            connector.restart(lab, Tuning::Drain).await?.stop().await?;
            let kept = lab.servers.home.path().join(KEPT_OFFSETS);
            fs::copy(connector.installation.offsets(), kept)
                .context("Connect has not stored where it is")?;
            Ok::<_, anyhow::Error>(())
        };
        step("letting Debezium publish a first row", preparing).await?;
        Ok(connector)
    }

    /// Lets it publish all rows that came after the first one.
    pub(crate) async fn drain(&self, lab: &Lab, rows: u64, tuning: Tuning) -> Result<Drain> {
        let draining = async {
            lab.topic.recreate().await?;
            drop_slots(lab, &[SLOT]).await?;
            let copy = "select pg_copy_logical_replication_slot($1, $2)";
            lab.sql().await?.query(copy, &[&KEPT_SLOT, &SLOT]).await?;
            let kept = lab.servers.home.path().join(KEPT_OFFSETS);
            // Over the file that Connect has made, for that stays its own.
            fs::copy(kept, self.installation.offsets())?;
            let ends = drain::look(lab).await?;
            let running = self.start(lab, tuning).await?;
            let drain = drain::watch(lab, ends, rows, running.pid(), CpuFrom::FirstRecord).await?;
            running.stop().await?;
            drain::check_total(lab, rows).await?;
            Ok::<_, anyhow::Error>(drain)
        };
        step(&format!("draining, {}", tuning.name()), draining).await
    }
    /// Starts it with no memory, and waits until it publishes what is written from now on.
    pub(crate) async fn restart(&self, lab: &Lab, tuning: Tuning) -> Result<Connect> {
        lab.topic.recreate().await?;
        drop_slots(lab, &[SLOT]).await?;
        // There is none the first time.
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
            Ok((drain::total(lab).await? == 1).then_some(()))
        })
        .await
        .with_context(|| format!("see {}", self.installation.log().display()))?;
        Ok(running)
    }

    /// Lets Postgres forget what it keeps for further runs.
    pub(crate) async fn forget(&self, lab: &Lab) -> Result<()> {
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
