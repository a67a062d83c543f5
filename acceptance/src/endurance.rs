//! Minutes or hours of steady load, while the relay is killed repeatedly or a transaction stays open.
//! Samples the size of the outbox and the relay's memory, and audits every event.

mod consumer;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use devstack::{Audit, Sql};
use lab::{Change, Cpu, Lab, Plan, Relay, WalLevel, peak_rss_mib};
use serde::Serialize;
use tokio::time::Instant;

use self::consumer::Accountant;

/// Rows of the printed table.
const SAMPLES: u32 = 12;
const AGGREGATES: &str = "create table aggregates (key text primary key, version bigint not null)";
/// Has a transaction id and a snapshot, so it holds back vacuum in the whole database.
const HOLD: &str = "begin isolation level repeatable read; select pg_current_xact_id()";
/// The size and dead tuples of the outbox with its partitions and indexes, and the dead tuples of the
/// checkpoints.
const TABLE_SIZES: &str = "
    select sum(pg_total_relation_size(relid)) filter (where relname like 'outbox\\__')::bigint,
           sum(n_dead_tup) filter (where relname like 'outbox\\__')::bigint,
           sum(n_dead_tup) filter (where relname = 'relay_checkpoints')::bigint
    from pg_stat_user_tables";

/// Options of the endurance test.
#[derive(Args, Clone, Debug)]
pub(crate) struct EnduranceOptions {
    /// Duration in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,
    /// Commits per second
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Number of times to kill the relay with SIGKILL, evenly spread
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000))]
    kills: u32,
    /// Run a second relay as a standby; kills hit the leader
    #[arg(long)]
    standby: bool,
    /// Keep a transaction open for the whole duration
    #[arg(long)]
    hold_transaction: bool,
    /// The relay's sink: kafka or rdkafka
    #[arg(long, default_value = "kafka")]
    sink: String,
    /// Write the report to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The report.
#[derive(Debug, Serialize)]
struct Report {
    seconds: u64,
    rate: u64,
    sink: String,
    kills: u32,
    standby: bool,
    held_transaction: bool,
    achieved_per_s: f64,
    /// The longest time without a new event.
    longest_pause_ms: f64,
    audit: Audit,
    samples: Vec<Sample>,
}

/// A sample of the running system.
#[derive(Debug, Serialize)]
struct Sample {
    at_s: u64,
    /// Events that should have been published by the schedule and have not been consumed.
    behind: u64,
    outbox_mib: f64,
    /// From Postgres' statistics, about a second old.
    outbox_dead_tuples: i64,
    checkpoint_dead_tuples: i64,
    relay_peak_rss_mib: f64,
    /// Percent of a core since the last sample. `None` if the leader changed since then.
    relay_cpu_percent: Option<f64>,
    postgres_cpu_percent: f64,
}

/// Runs the test and prints the report. Fails if the audit finds a fault.
pub(crate) async fn run(options: &EnduranceOptions) -> Result<()> {
    let lab = Lab::start(WalLevel::Replica).await?;
    let report = endure(&lab, options).await;
    lab.stop().await;
    let report = report?;
    println!(
        "\n{}; the longest pause was {:.0} ms",
        report.audit, report.longest_pause_ms
    );
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("failed to write {}", path.display()))?;
    }
    ensure!(report.audit.is_clean(), "the audit found faults");
    Ok(())
}

async fn endure(lab: &Lab, options: &EnduranceOptions) -> Result<Report> {
    let sql = lab.sql().await?;
    sql.batch_execute(AGGREGATES).await?;
    lab.topic.recreate().await?;
    let topic = lab.topic.clone();
    let consumer = tokio::task::spawn_blocking(move || topic.consumer_from_now()).await??;
    let accountant = Accountant::start(consumer);
    let mut relays = vec![Relay::start(lab, &options.sink).await?];
    relays[0].wait_ready().await?;
    if options.standby {
        relays.push(Relay::start_beside(lab, &options.sink, "outbox-relay-standby").await?);
    }
    let held = lab.sql().await?;
    if options.hold_transaction {
        held.batch_execute(HOLD).await?;
    }
    let measured_for = Duration::from_secs(options.seconds);
    let plan = Plan {
        change: Change::Version,
        rate: options.rate,
        warm_up: Duration::ZERO,
        measured_for,
    };
    let writers = plan.prepare(lab).await?;
    let mut observer = Observer {
        lab,
        options,
        sql: &sql,
        accountant: &accountant,
        start: Instant::now(),
        last: None,
        samples: Vec::new(),
    };
    let (written, ()) = tokio::try_join!(writers.write(), observer.run(&mut relays))?;
    let samples = observer.samples;
    if options.hold_transaction {
        held.batch_execute("rollback").await?;
    }
    let accounts = accountant.finish(written.committed).await?;
    for relay in relays {
        relay.stop().await?;
    }
    let newest = sql
        .query("select key, version from aggregates", &[])
        .await?;
    let newest = newest.iter().map(|row| (row.get(0), row.get(1)));
    Ok(Report {
        seconds: options.seconds,
        rate: options.rate,
        sink: options.sink.clone(),
        kills: options.kills,
        standby: options.standby,
        held_transaction: options.hold_transaction,
        achieved_per_s: written.committed_while_measured as f64 / measured_for.as_secs_f64(),
        longest_pause_ms: accounts.longest_pause.as_secs_f64() * 1_000.0,
        audit: accounts.auditor.finish(newest),
        samples,
    })
}

/// Takes the samples and kills the relay on schedule.
struct Observer<'a> {
    lab: &'a Lab,
    options: &'a EnduranceOptions,
    sql: &'a Sql,
    accountant: &'a Accountant,
    start: Instant,
    /// The relay, time and CPU of the last sample.
    last: Option<(u32, Instant, Cpu)>,
    samples: Vec<Sample>,
}

impl Observer<'_> {
    async fn run(&mut self, relays: &mut [Relay]) -> Result<()> {
        self.sample(relays[0].pid()).await?;
        eprintln!(
            "{:>8}{:>9}{:>12}{:>12}{:>17}{:>11}{:>14}{:>16}",
            "second",
            "behind",
            "outbox MiB",
            "dead rows",
            "checkpoint dead",
            "relay MiB",
            "CPU: relay %",
            "Postgres %"
        );
        let duration = Duration::from_secs(self.options.seconds);
        let (mut kills, mut samples) = (0, 0);
        loop {
            // Not at the start or the end, where there is no load to disturb.
            let next_kill = duration * (kills + 1) / (self.options.kills + 1);
            let next_sample = duration * (samples + 1) / SAMPLES;
            if kills < self.options.kills && next_kill <= next_sample {
                tokio::time::sleep_until(self.start + next_kill).await;
                find_leader(relays).await.kill().await?;
                kills += 1;
            } else if samples < SAMPLES {
                tokio::time::sleep_until(self.start + next_sample).await;
                let sample = self.sample(find_leader(relays).await.pid()).await?;
                print_sample(&sample);
                self.samples.push(sample);
                samples += 1;
            } else {
                return Ok(());
            }
        }
    }

    async fn sample(&mut self, relay: u32) -> Result<Sample> {
        let tables = self.sql.query_one(TABLE_SIZES, &[]).await?;
        let cpu = self.lab.processes(relay)?.cpu()?;
        let now = Instant::now();
        let since_start = now - self.start;
        let (last_relay, last_at, last_cpu) = self
            .last
            .replace((relay, now, cpu))
            .unwrap_or((relay, now, cpu));
        let used = cpu.since(last_cpu);
        let percent = |cpu_s: f64| cpu_s / (now - last_at).as_secs_f64().max(0.001) * 100.0;
        let scheduled = since_start.as_secs_f64() * self.options.rate as f64;
        Ok(Sample {
            at_s: since_start.as_secs(),
            behind: (scheduled as u64).saturating_sub(self.accountant.received()),
            outbox_mib: tables.get::<_, i64>(0) as f64 / f64::from(1 << 20),
            outbox_dead_tuples: tables.get(1),
            checkpoint_dead_tuples: tables.get(2),
            relay_peak_rss_mib: peak_rss_mib(relay)?,
            relay_cpu_percent: (relay == last_relay).then(|| percent(used.publisher)),
            postgres_cpu_percent: percent(used.postgres),
        })
    }
}

/// Returns the leader, or the first relay while there is none.
async fn find_leader(relays: &mut [Relay]) -> &mut Relay {
    let mut leader = 0;
    for (index, relay) in relays.iter().enumerate() {
        if relay.is_leader().await {
            leader = index;
        }
    }
    &mut relays[leader]
}

fn print_sample(sample: &Sample) {
    let relay_cpu = (sample.relay_cpu_percent).map_or_else(String::new, |cpu| format!("{cpu:.1}"));
    eprintln!(
        "{:>8}{:>9}{:>12.1}{:>12}{:>17}{:>11.1}{relay_cpu:>14}{:>16.1}",
        sample.at_s,
        sample.behind,
        sample.outbox_mib,
        sample.outbox_dead_tuples,
        sample.checkpoint_dead_tuples,
        sample.relay_peak_rss_mib,
        sample.postgres_cpu_percent,
    );
}
