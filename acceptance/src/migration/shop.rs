//! The test environment: a database with an outbox, its topics, Debezium and the relay.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use devstack::{Addresses, Record, Sql, eventually};
use lab::{ConfiguredRelay, Connect, EndOffsets, Installation, Lab, PARTITIONS, with_database};

const TABLES: &str = include_str!("shop.sql");
const RELAY_TABLES: &str = include_str!("../../../outbox-relay/sql/relay.sql");
const CONNECTOR: &str = include_str!("debezium.properties");
/// Connect stores its offset and confirms it to Postgres every 60 s by default, which is too long for
/// a test.
const WORKER: &str = "offset.flush.interval.ms=10000\n";
const HEAP: &str = "-Xmx1g";
/// The page whose source configuration is used.
const PAGE: &str = include_str!("../../../docs/relay/migrating.md");
const SECTION: &str = "## From Debezium\n";
const EXAMPLE_URL: &str = "postgres://outbox_relay:secret@localhost:5432/shop";

/// The topic of the audited events: `outbox.event.` and the aggregate type.
pub(super) const TOPIC: &str = "outbox.event.order";
/// The topic of the sample events, which both publish.
pub(super) const SAMPLE_TOPIC: &str = "outbox.event.sample";
/// Versions of each key of the backlog.
const BACKLOG_VERSIONS: u64 = 10;
/// A topic is complete when this many polls in a row find no new record.
const QUIET_POLLS: u32 = 10;
const QUIET_POLL_INTERVAL: Duration = Duration::from_millis(500);
const QUIET_POLLS_LIMIT: u32 = 120;

pub(super) struct Shop<'a> {
    pub(super) lab: &'a Lab,
    pub(super) database_url: String,
    pub(super) sql: Sql,
    addresses: Addresses,
}

impl<'a> Shop<'a> {
    /// Creates the database and the topics.
    pub(super) async fn create(lab: &'a Lab) -> Result<Self> {
        let addresses = lab.servers.addresses();
        let database_url = addresses.create_database("shop").await?;
        let sql = Sql::connect(&database_url).await?;
        sql.batch_execute(TABLES).await?;
        for topic in [TOPIC, SAMPLE_TOPIC] {
            addresses.create_topic(topic, PARTITIONS).await?;
        }
        // No compaction before the audit, and the broker's clock in all records.
        let configs = [
            ("cleanup.policy", "delete"),
            ("message.timestamp.type", "LogAppendTime"),
        ];
        addresses.alter_topic(TOPIC, &configs).await?;
        Ok(Self {
            lab,
            database_url,
            sql,
            addresses,
        })
    }

    /// Starts Debezium and waits until it reads its slot.
    pub(super) async fn start_debezium(&self, installation: &Installation) -> Result<Connect> {
        let connector = with_database(CONNECTOR, &self.database_url)?;
        let connect = installation.start(&connector, WORKER, HEAP).await?;
        self.wait_for_slot("active")
            .await
            .with_context(|| format!("see {}", installation.log().display()))?;
        Ok(connect)
    }

    /// Stops the connector as documented. Connect keeps running.
    pub(super) async fn stop_debezium(&self, connect: &Connect) -> Result<()> {
        connect.ask("PUT", "/connectors/shop/stop").await?;
        eventually("a connector that has stopped", async || {
            let status = connect.ask("GET", "/connectors/shop/status").await?;
            let is_stopped = status.contains("\"tasks\":[]") && status.contains("STOPPED");
            Ok(is_stopped.then_some(()))
        })
        .await?;
        self.wait_for_slot("not active").await
    }

    /// Resumes a stopped connector.
    pub(super) async fn resume_debezium(&self, connect: &Connect) -> Result<()> {
        connect.ask("PUT", "/connectors/shop/resume").await?;
        self.wait_for_slot("active").await
    }

    /// Waits until Debezium has confirmed this LSN to Postgres.
    pub(super) async fn wait_until_confirmed(&self, lsn: &str) -> Result<()> {
        let query = format!(
            "select count(*) from pg_replication_slots
             where slot_name = 'shop_outbox' and confirmed_flush_lsn >= '{lsn}'"
        );
        self.sql.wait_for(&query, 1).await
    }

    /// Drops Debezium's replication slot.
    pub(super) async fn drop_slot(&self) -> Result<()> {
        self.wait_for_slot("not active").await?;
        let drop = "select pg_drop_replication_slot('shop_outbox')";
        Ok(self.sql.batch_execute(drop).await?)
    }

    async fn wait_for_slot(&self, condition: &str) -> Result<()> {
        let query = format!(
            "select count(*) from pg_replication_slots
             where slot_name = 'shop_outbox' and {condition}"
        );
        self.sql.wait_for(&query, 1).await
    }

    /// Writes rows and waits until Debezium has published them.
    pub(super) async fn publish_backlog(&self, rows: u64) -> Result<()> {
        let keys = rows.div_ceil(BACKLOG_VERSIONS);
        let write = format!(
            "do $$ begin
                 for version in 1..{BACKLOG_VERSIONS} loop
                     insert into outboxevent (id, aggregatetype, aggregateid, type, payload)
                     select gen_random_uuid(), 'order', 'backlog-' || key, 'OrderChanged',
                         jsonb_build_object('version', version, 'at_ms',
                             (extract(epoch from clock_timestamp()) * 1000)::bigint)
                     from generate_series(1, {keys}) as key;
                     commit;
                 end loop;
             end $$"
        );
        self.sql.batch_execute(&write).await?;
        let written = self.sql.count("select count(*) from outboxevent").await?;
        let ends = self.ends().await?;
        eventually("a backlog that Debezium has published", async || {
            Ok((ends.total()? >= u64::try_from(written)?).then_some(()))
        })
        .await
    }

    /// Creates the relay's own tables.
    pub(super) async fn create_relay_tables(&self) -> Result<()> {
        Ok(self.sql.batch_execute(RELAY_TABLES).await?)
    }

    /// Returns a relay with the documented configuration.
    pub(super) fn configure_relay(&self) -> Result<ConfiguredRelay> {
        let (_, section) = PAGE
            .split_once(SECTION)
            .context("the page has no section on Debezium")?;
        let (_, block) = section
            .split_once("```toml\n")
            .context("the section has no TOML block")?;
        let (block, _) = block
            .split_once("```")
            .context("the TOML block has no end")?;
        ensure!(
            block.contains(EXAMPLE_URL),
            "{EXAMPLE_URL} not found in {block}"
        );
        let source = block.replace(EXAMPLE_URL, &self.database_url);
        ConfiguredRelay::new(self.lab, "kafka", "outbox-relay", &source)
    }

    /// Waits until no more records arrive, and reads the topic.
    pub(super) async fn read_to_the_end(&self, topic: &str) -> Result<Vec<Record>> {
        let ends = self.ends().await?;
        let (mut last, mut quiet) = (0, 0);
        for _ in 0..QUIET_POLLS_LIMIT {
            tokio::time::sleep(QUIET_POLL_INTERVAL).await;
            let total = ends.total()?;
            quiet = if total == last { quiet + 1 } else { 0 };
            last = total;
            if quiet == QUIET_POLLS {
                return self.addresses.read_topic(topic).await;
            }
        }
        bail!("topic {topic} still grows after {QUIET_POLLS_LIMIT} polls")
    }

    async fn ends(&self) -> Result<EndOffsets> {
        let mut topic = self.lab.topic.clone();
        TOPIC.clone_into(&mut topic.name);
        tokio::task::spawn_blocking(move || topic.ends()).await?
    }
}
