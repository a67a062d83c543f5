//! Migrates an outbox from Debezium to the relay under load with the documented steps. Measures how
//! each step affects concurrent writers, and audits every event.

mod audit;
mod report;
mod shop;
mod stages;
mod steps;
mod writers;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use devstack::step;
use lab::{ConfiguredRelay, Connect, Installation, Lab, Machine, Relay, WalLevel};
use serde::Serialize;

use self::{
    audit::audit,
    report::Report,
    shop::{SAMPLE_TOPIC, Shop, TOPIC},
    stages::Stages,
    writers::{LongTransaction, Writers},
};

/// Duration of the undisturbed stages: Debezium before the first step, the relay, and Debezium again.
const STEADY: Duration = Duration::from_secs(5);
// Names of stages.
const BEFORE: &str = "Debezium publishes";
const STOP: &str = "Debezium stops";
const START: &str = "outbox-relay starts";
const AFTER: &str = "outbox-relay publishes";

/// Rows between the last step and the stop of Debezium, so that both publish them.
const SAMPLE: &str = "
    insert into outboxevent (id, aggregatetype, aggregateid, type, payload)
    values (gen_random_uuid(), 'sample', '42', 'OrderPlaced', '{\"total\":7.10,\"to\":\"Zo\\u00eb\"}'),
        (gen_random_uuid(), 'sample', '43', 'OrderForgotten', null)";
/// A checkpoint that claims that all rows so far are published.
const FROM_NOW: &str = "
    insert into relay_checkpoints (source, epoch, snapshot, max_seq, heartbeat_at, resigned)
    select 'shop', 0, pg_current_snapshot(), max(seq), clock_timestamp(), true from outboxevent";

/// Options of the migration.
#[derive(Args, Clone, Debug)]
pub(crate) struct MigrationOptions {
    /// Rows that Debezium publishes before the migration starts
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    rows: u64,
    /// Rows written per second during the migration
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    rate: u64,
    /// Duration in milliseconds of the transactions that block the steps; the default is longer than
    /// `lock_timeout`
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(..=10_000))]
    long_ms: u64,
    /// Switch back to Debezium at the end
    #[arg(long)]
    back: bool,
    /// Make this mistake, to check that the audit detects it
    #[arg(long)]
    mistake: Option<Mistake>,
    /// Write the report to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A mistake during the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Mistake {
    /// Stop Debezium before the columns have their defaults
    StopEarly,
    /// Start the relay at the current end of the outbox
    FromNow,
    /// Start the relay while Debezium still publishes
    BothAtOnce,
}

/// Runs the migration and prints the report. Fails if the audit finds a fault.
pub(crate) async fn run(options: &MigrationOptions) -> Result<()> {
    let lab = Lab::start(WalLevel::Logical).await?;
    let report = Box::pin(migrate(&lab, options)).await;
    lab.stop().await;
    let report = report?;
    println!("{report}");
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("failed to write {}", path.display()))?;
    }
    ensure!(report.verdict.is_clean(), "the audit found faults");
    Ok(())
}

async fn migrate(lab: &Lab, options: &MigrationOptions) -> Result<Report> {
    let shop = Shop::create(lab).await?;
    let installation = Installation::fetch(&lab.servers.work_dir, &lab.topic.brokers).await?;
    let starting = shop.start_debezium(&installation);
    let debezium = step("starting Debezium", starting).await?;
    let filling = shop.publish_backlog(options.rows);
    step("letting Debezium publish a backlog", filling).await?;
    let writers = Writers::start(&shop.database_url, options.rate).await?;
    let mut migration = Migration {
        shop: &shop,
        debezium: &debezium,
        options,
        stages: Stages::default(),
    };
    let relay = migration.run().await?;
    let transactions = writers.finish().await?;
    let reading = shop.read_to_the_end(TOPIC);
    let records = step("reading the topic to its end", reading).await?;
    let sample = shop.read_to_the_end(SAMPLE_TOPIC).await?;
    if let Some(relay) = relay {
        relay.stop().await?;
    }
    let stages = migration.stages;
    debezium.stop().await?;
    shop.drop_slot().await?;
    let (verdict, events) = audit(&audit::load_rows(&shop.sql).await?, &records)?;
    Ok(Report {
        measured_at: chrono::Local::now().format("%Y-%m-%d").to_string(),
        machine: Machine::describe(&lab.sql().await?).await?,
        debezium: Installation::VERSION,
        backlog_rows: options.rows,
        rows_per_s: options.rate,
        long_ms: options.long_ms,
        mistake: options.mistake,
        stages: stages.report(&transactions, &events),
        longest_pause_ms: stages.longest_pause_ms(&events, &[STOP, START, AFTER]),
        verdict,
        sample: sample.into_iter().map(Into::into).collect(),
    })
}

/// Runs the documented steps, in order or with a mistake.
struct Migration<'a> {
    shop: &'a Shop<'a>,
    debezium: &'a Connect,
    options: &'a MigrationOptions,
    stages: Stages,
}

impl Migration<'_> {
    /// Returns the relay if it publishes at the end.
    async fn run(&mut self) -> Result<Option<Relay>> {
        let creating = self.shop.create_relay_tables();
        self.stages.run("relay.sql", creating).await?;
        self.stages.wait(BEFORE, STEADY).await?;
        // Older than the columns and than every transaction that commits before it.
        let at_handover = LongTransaction::begin(&self.shop.database_url, "at-handover").await?;
        let lsn = self.add_columns().await?;
        // Its row gets a seq now. Many higher ones are committed before it.
        at_handover.write().await?;
        self.shop.sql.batch_execute(SAMPLE).await?;
        let relay = self.shop.configure_relay()?;
        let checking = relay.check(self.shop.lab);
        self.stages.run("outbox-relay check", checking).await?;
        let relay = self.hand_over(relay, &lsn).await?;
        self.stages.wait(AFTER, STEADY).await?;
        at_handover.commit().await?;
        if !self.options.back {
            return Ok(Some(relay));
        }
        self.stages.run("outbox-relay stops", relay.stop()).await?;
        let resuming = self.shop.resume_debezium(self.debezium);
        self.stages.run("Debezium resumes", resuming).await?;
        self.stages.wait("Debezium again", STEADY).await?;
        Ok(None)
    }

    /// Runs the documented SQL. A transaction that is older than the columns blocks each step. Returns
    /// the LSN that the last step prints.
    async fn add_columns(&mut self) -> Result<String> {
        let (url, sql) = (&self.shop.database_url, &self.shop.sql);
        let pause = Duration::from_millis(self.options.long_ms);
        let at_columns = LongTransaction::begin(url, "at-columns").await?;
        let at_indexes = LongTransaction::begin(url, "at-indexes").await?;
        let at_defaults = LongTransaction::begin(url, "at-defaults").await?;
        let [columns, numbers, indexes, defaults] = steps::read()?;
        let mut blocking = vec![at_columns.write_and_commit_after(pause).await?];
        self.stages.run_documented(sql, &columns).await?;
        self.stages.run_documented(sql, &numbers).await?;
        blocking.push(at_indexes.write_and_commit_after(pause).await?);
        self.stages.run_documented(sql, &indexes).await?;
        if self.options.mistake == Some(Mistake::StopEarly) {
            self.stop_debezium().await?;
        }
        // Its row has no seq and commits at the last moment at which that is possible.
        blocking.push(at_defaults.write_and_commit_after(pause).await?);
        let lsn = self.stages.run_documented(sql, &defaults).await?;
        for transaction in blocking {
            transaction.await??;
        }
        lsn.context("the last step printed no LSN")
    }

    /// Switches from Debezium to the relay.
    async fn hand_over(&mut self, relay: ConfiguredRelay, lsn: &str) -> Result<Relay> {
        let mistake = self.options.mistake;
        // A stopped Debezium never confirms.
        if mistake != Some(Mistake::StopEarly) {
            let confirming = self.shop.wait_until_confirmed(lsn);
            self.stages.run("Debezium confirms", confirming).await?;
        }
        match mistake {
            Some(Mistake::StopEarly) => self.start_relay(relay).await,
            Some(Mistake::BothAtOnce) => {
                let relay = self.start_relay(relay).await?;
                self.stages.wait("both publish", STEADY).await?;
                self.stop_debezium().await?;
                Ok(relay)
            }
            Some(Mistake::FromNow) => {
                self.stop_debezium().await?;
                self.shop.sql.batch_execute(FROM_NOW).await?;
                self.start_relay(relay).await
            }
            None => {
                self.stop_debezium().await?;
                self.start_relay(relay).await
            }
        }
    }

    async fn stop_debezium(&mut self) -> Result<()> {
        let stopping = self.shop.stop_debezium(self.debezium);
        self.stages.run(STOP, stopping).await
    }

    async fn start_relay(&mut self, relay: ConfiguredRelay) -> Result<Relay> {
        let starting = async {
            let relay = relay.start(self.shop.lab).await?;
            relay.wait_ready().await?;
            Ok(relay)
        };
        self.stages.run(START, starting).await
    }
}
