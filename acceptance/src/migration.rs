//! From Debezium to the relay, under load: the documented steps on an outbox that Debezium publishes,
//! what each costs those who write meanwhile, and an account of every event.

mod judge;
mod report;
mod shop;
mod stages;
mod steps;
mod writers;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use devstack::step;
use lab::{Configured, Connect, Installation, Lab, Machine, Relay, WalLevel};
use serde::Serialize;

use self::{
    judge::judge,
    report::Report,
    shop::{SAMPLE_TOPIC, Shop, TOPIC},
    stages::Stages,
    writers::{Long, Writers},
};

/// How long whoever publishes is left alone: before the first step, with the relay, and back again.
const STEADY: Duration = Duration::from_secs(5);
// Names of stages.
const BEFORE: &str = "Debezium publishes";
const STOP: &str = "Debezium stops";
const START: &str = "outbox-relay starts";
const AFTER: &str = "outbox-relay publishes";

/// Written between the last step and the end of Debezium, so that both publish them.
const SAMPLE: &str = "
    insert into outboxevent (id, aggregatetype, aggregateid, type, payload)
    values (gen_random_uuid(), 'sample', '42', 'OrderPlaced', '{\"total\":7.10,\"to\":\"Zo\\u00eb\"}'),
        (gen_random_uuid(), 'sample', '43', 'OrderForgotten', null)";
/// A relay that is made to believe that everything until now was published.
const FROM_NOW: &str = "
    insert into relay_checkpoints (source, epoch, snapshot, max_seq, heartbeat_at, resigned)
    select 'shop', 0, pg_current_snapshot(), max(seq), clock_timestamp(), true from outboxevent";

/// How to go from Debezium to the relay.
#[derive(Args, Clone, Debug)]
pub(crate) struct MigrationOptions {
    /// Rows that Debezium has published before it begins
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    rows: u64,
    /// Rows that are written each second, all the while
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    rate: u64,
    /// How long transactions stay open that are in the way of the steps, in milliseconds: by default
    /// longer than `lock_timeout`
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(..=10_000))]
    long_ms: u64,
    /// Go back to Debezium in the end
    #[arg(long)]
    back: bool,
    /// Make a mistake, to see that it is noticed
    #[arg(long)]
    mistake: Option<Mistake>,
    /// Write what was found to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What can be done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Mistake {
    /// Debezium is stopped before the columns have their defaults
    StopEarly,
    /// The relay begins with what is written after its start
    FromNow,
    /// The relay is started while Debezium still publishes
    BothAtOnce,
}

/// Migrates, and tells; fails if a single event is not accounted for.
pub(crate) async fn run(options: &MigrationOptions) -> Result<()> {
    let lab = Lab::start(WalLevel::Logical).await?;
    let report = Box::pin(migrate(&lab, options)).await;
    lab.stop().await;
    let report = report?;
    println!("{report}");
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("can't write {}", path.display()))?;
    }
    ensure!(
        report.verdict.is_clean(),
        "not every event is accounted for"
    );
    Ok(())
}

async fn migrate(lab: &Lab, options: &MigrationOptions) -> Result<Report> {
    let shop = Shop::open(lab).await?;
    let installation = Installation::fetch(&lab.servers.home, &lab.topic.brokers).await?;
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
    let (verdict, arrivals) = judge(&judge::rows(&shop.sql).await?, &records)?;
    Ok(Report {
        measured_at: chrono::Local::now().format("%Y-%m-%d").to_string(),
        machine: Machine::describe(&lab.sql().await?).await?,
        debezium: Installation::VERSION,
        backlog_rows: options.rows,
        rows_per_s: options.rate,
        long_ms: options.long_ms,
        mistake: options.mistake,
        stages: stages.found(&transactions, &arrivals),
        longest_pause_ms: stages.longest_pause_ms(&arrivals, &[STOP, START, AFTER]),
        verdict,
        sample: sample.into_iter().map(Into::into).collect(),
    })
}

/// The documented steps, in their order or another.
struct Migration<'a> {
    shop: &'a Shop<'a>,
    debezium: &'a Connect,
    options: &'a MigrationOptions,
    stages: Stages,
}

impl Migration<'_> {
    /// Returns the relay, where it publishes in the end.
    async fn run(&mut self) -> Result<Option<Relay>> {
        let making = self.shop.make_relay_tables();
        self.stages.run("relay.sql", making).await?;
        self.stages.wait(BEFORE, STEADY).await?;
        // It is older than the columns, and than whatever commits before it.
        let at_handover = Long::begin(&self.shop.database_url, "at-handover").await?;
        let place = self.give_columns().await?;
        // It has a seq now, which is passed by many others before it is committed.
        at_handover.write().await?;
        self.shop.sql.batch_execute(SAMPLE).await?;
        let relay = self.shop.relay()?;
        let checking = relay.check(self.shop.lab);
        self.stages.run("outbox-relay check", checking).await?;
        let relay = self.hand_over(relay, &place).await?;
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

    /// Runs the documented SQL, each step with a transaction in its way that is older than the
    /// columns. Returns the place in the log that it has printed.
    async fn give_columns(&mut self) -> Result<String> {
        let (url, sql) = (&self.shop.database_url, &self.shop.sql);
        let pause = Duration::from_millis(self.options.long_ms);
        let at_columns = Long::begin(url, "at-columns").await?;
        let at_indexes = Long::begin(url, "at-indexes").await?;
        let at_defaults = Long::begin(url, "at-defaults").await?;
        let [columns, numbers, indexes, defaults] = steps::read()?;
        let mut in_the_way = vec![at_columns.write_and_commit_after(pause).await?];
        self.stages.run_documented(sql, &columns).await?;
        self.stages.run_documented(sql, &numbers).await?;
        in_the_way.push(at_indexes.write_and_commit_after(pause).await?);
        self.stages.run_documented(sql, &indexes).await?;
        if self.options.mistake == Some(Mistake::StopEarly) {
            self.stop_debezium().await?;
        }
        // Its event has no seq, and is committed in the last moment in which that can be.
        in_the_way.push(at_defaults.write_and_commit_after(pause).await?);
        let place = self.stages.run_documented(sql, &defaults).await?;
        for transaction in in_the_way {
            transaction.await??;
        }
        place.context("the last step has not printed where it was")
    }

    /// From one to the other.
    async fn hand_over(&mut self, relay: Configured, place: &str) -> Result<Relay> {
        let mistake = self.options.mistake;
        // It would never come.
        if mistake != Some(Mistake::StopEarly) {
            let confirming = self.shop.wait_until_confirmed(place);
            self.stages.run("Debezium confirms", confirming).await?;
        }
        match mistake {
            Some(Mistake::StopEarly) => self.start(relay).await,
            Some(Mistake::BothAtOnce) => {
                let relay = self.start(relay).await?;
                self.stages.wait("both publish", STEADY).await?;
                self.stop_debezium().await?;
                Ok(relay)
            }
            Some(Mistake::FromNow) => {
                self.stop_debezium().await?;
                self.shop.sql.batch_execute(FROM_NOW).await?;
                self.start(relay).await
            }
            None => {
                self.stop_debezium().await?;
                self.start(relay).await
            }
        }
    }

    async fn stop_debezium(&mut self) -> Result<()> {
        let stopping = self.shop.stop_debezium(self.debezium);
        self.stages.run(STOP, stopping).await
    }

    async fn start(&mut self, relay: Configured) -> Result<Relay> {
        let starting = async {
            let relay = relay.start(self.shop.lab).await?;
            relay.wait_ready().await?;
            Ok(relay)
        };
        self.stages.run(START, starting).await
    }
}
