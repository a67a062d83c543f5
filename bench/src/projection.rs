//! Measures order-service's projection of users: the rate of a rebuild compared with a plain consumer of
//! the same topic, and the lag at a steady rate.

mod plain;
mod users;

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use devstack::{Servers, Sql, Stack, built_programs, step};
use lab::peak_rss_mib;
use serde::Serialize;
use tokio::{process::Command, time::Instant};

/// Options of the projection benchmark.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProjectionOptions {
    /// Records in the topic
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(PLAIN_RECORDS..=100_000_000))]
    records: u64,
    /// Interleaved runs of each program
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Users per second during the lag measurement
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Seconds of the lag measurement
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Write all figures to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Records that the plain consumer applies. It is slow, so these are enough.
const PLAIN_RECORDS: u64 = 20_000;
const TOPIC: &str = "bench.users.v1";
const PARTITIONS: i32 = 6;
/// Commit timestamps show when a row became visible.
const POSTGRES_SETTINGS: [&str; 3] = [
    "track_commit_timestamp=on",
    "shared_buffers=512MB",
    "max_wal_size=4GB",
];
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Limit for each wait, far longer than any of them takes.
const WAIT_TIMEOUT: Duration = Duration::from_secs(600);

/// The report, with the medians of the runs.
#[derive(Debug, Serialize)]
struct Report {
    measured_at: String,
    records: u64,
    runs: u32,
    /// `projection rebuild`.
    rebuild: Rate,
    /// A service that starts with all records pending.
    catch_up: Rate,
    /// A consumer that runs one statement per record and keeps its offset in Kafka.
    plain: Rate,
    rebuild_over_plain: f64,
    steady: Lag,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Rate {
    records_per_s: f64,
    min: f64,
    max: f64,
    peak_rss_mib: f64,
}

impl Rate {
    fn of(mut rates: Vec<(f64, f64)>) -> Self {
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let peak_rss_mib = rates.iter().map(|(_, rss)| *rss).fold(0.0, f64::max);
        let at = |index: usize| rates.get(index).map_or(0.0, |(rate, _)| *rate);
        Self {
            records_per_s: at(rates.len() / 2),
            min: at(0),
            max: at(rates.len().saturating_sub(1)),
            peak_rss_mib,
        }
    }
}

/// Time from before a record was sent to the commit of its row.
#[derive(Clone, Copy, Debug, Serialize)]
struct Lag {
    rate: u64,
    records: i64,
    lag_p50_ms: f64,
    lag_p99_ms: f64,
    lag_max_ms: f64,
}

/// Runs the measurement, prints the tables and writes the file.
pub(crate) async fn run(options: &ProjectionOptions) -> Result<()> {
    let servers = Servers::start(&POSTGRES_SETTINGS).await?;
    let report = measure(&servers, options).await;
    servers.stop().await;
    let report = report?;
    println!("{}", report.table());
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

async fn measure(servers: &Servers, options: &ProjectionOptions) -> Result<Report> {
    // First, while the system is idle: the writes of the other measurements are flushed for minutes.
    let steady = measure_lag(servers, options).await?;
    let addresses = servers.addresses();
    addresses.create_topic(TOPIC, PARTITIONS).await?;
    let brokers = servers.kafka.brokers().to_owned();
    step(
        "filling the topic",
        users::fill(brokers.clone(), TOPIC, options.records),
    )
    .await?;
    let (mut rebuilds, mut catch_ups, mut plains) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=options.runs {
        let database = async |what: &str| addresses.create_database(&format!("{what}{run}")).await;
        let url = database("plain").await?;
        let plain = plain::consume(&brokers, TOPIC, &url, PLAIN_RECORDS);
        plains.push((step("plain consumer", plain).await?, 0.0));
        let url = database("rebuild").await?;
        let rebuild = Program::migrated(&url, &brokers)
            .await?
            .rebuild(options.records);
        rebuilds.push(step("projection rebuild", rebuild).await?);
        let url = database("serve").await?;
        let catch_up = Program::migrated(&url, &brokers)
            .await?
            .catch_up(options.records);
        catch_ups.push(step("service catching up", catch_up).await?);
    }
    let (rebuild, plain) = (Rate::of(rebuilds), Rate::of(plains));
    Ok(Report {
        measured_at: chrono::Local::now().format("%Y-%m-%d").to_string(),
        records: options.records,
        runs: options.runs,
        rebuild_over_plain: rebuild.records_per_s / plain.records_per_s,
        rebuild,
        catch_up: Rate::of(catch_ups),
        plain,
        steady,
    })
}

/// order-service with its own database.
struct Program {
    executable: PathBuf,
    url: String,
    brokers: String,
}

impl Program {
    async fn migrated(url: &str, brokers: &str) -> Result<Self> {
        let program = Self {
            executable: built_programs()?.join("order-service"),
            url: url.to_owned(),
            brokers: brokers.to_owned(),
        };
        let status = program.command(&["migrate"]).status().await?;
        ensure!(status.success(), "migrate failed: {status}");
        Ok(program)
    }

    fn group(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or("bench")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .args(arguments)
            .env("DATABASE_URL", &self.url)
            .env("KAFKA_BROKERS", &self.brokers)
            .env("USERS_TOPIC", TOPIC)
            .env("CONSUMER_GROUP", self.group())
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("LOG_LEVEL", "warn")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `projection rebuild`. Returns its records per second and its peak memory in MiB.
    async fn rebuild(self, records: u64) -> Result<(f64, f64)> {
        let sql = Sql::connect(&self.url).await?;
        // As if a service had subscribed to the topic and applied nothing yet.
        let known = format!(
            "insert into projection_offsets (projection, topic, partition, next_offset)
             select '{}', '{TOPIC}', partition, 0
             from generate_series(0, {PARTITIONS} - 1) as partition",
            self.group()
        );
        sql.batch_execute(&known).await?;
        let started = Instant::now();
        let mut child = self.command(&["projection", "rebuild"]).spawn()?;
        let pid = child.id().context("order-service has exited")?;
        let mut rss = 0.0;
        let status = loop {
            rss = peak_rss_mib(pid).unwrap_or(rss);
            tokio::select! {
                status = child.wait() => break status?,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        };
        let took = started.elapsed();
        ensure!(status.success(), "projection rebuild failed: {status}");
        let built = sql.count("select count(*) from users_cache").await?;
        // The last records are left to the running service.
        ensure!(
            built as u64 + 1_000 >= records,
            "rebuilt only {built} of {records} users"
        );
        Ok((built as f64 / took.as_secs_f64(), rss))
    }

    /// Starts a service with all records pending. Returns its records per second and its peak memory in MiB.
    async fn catch_up(self, records: u64) -> Result<(f64, f64)> {
        let sql = Sql::connect(&self.url).await?;
        let started = Instant::now();
        let mut child = self.command(&["serve"]).spawn()?;
        let pid = child.id().context("order-service has exited")?;
        let applied = "select coalesce(sum(applied), 0)::bigint from projection_offsets";
        while (sql.count(applied).await? as u64) < records {
            ensure!(
                started.elapsed() < WAIT_TIMEOUT,
                "order-service did not catch up within {WAIT_TIMEOUT:?}"
            );
            ensure!(child.try_wait()?.is_none(), "order-service has exited");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let per_s = records as f64 / started.elapsed().as_secs_f64();
        let rss = peak_rss_mib(pid)?;
        child.kill().await?;
        Ok((per_s, rss))
    }
}

/// Measures the lag at a steady rate of users on an otherwise idle system.
async fn measure_lag(servers: &Servers, options: &ProjectionOptions) -> Result<Lag> {
    let stack = Stack::start(&servers.work_dir, &servers.addresses(), "", &[]).await?;
    let names = stack.names();
    let sql = Sql::connect(&names.orders_database_url).await?;
    let (brokers, topic) = (names.brokers.clone(), names.users_topic.clone());
    let warm_up = users::send_steadily(brokers.clone(), topic.clone(), options.rate, 3, "warm-up");
    step("warm-up", warm_up).await?;
    let sending = users::send_steadily(brokers, topic, options.rate, options.seconds, "measured");
    let sent = step("users at a steady rate", sending).await?;
    let measured = "select count(*) from users_cache where email like 'measured%'";
    sql.wait_for(measured, sent as i64).await?;
    // A user's name is the time before it was sent, in microseconds.
    let lags = "select percentile_disc(array[0.5, 0.99, 1]) within group (order by
            extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000 - name::numeric / 1000)::float8[]
        from users_cache where email like 'measured%'";
    let lags: Vec<f64> = sql.query_one(lags, &[]).await?.get(0);
    stack.stop().await;
    Ok(Lag {
        rate: options.rate,
        records: sent as i64,
        lag_p50_ms: lags[0],
        lag_p99_ms: lags[1],
        lag_max_ms: lags[2],
    })
}

impl Report {
    /// Formats the report as Markdown.
    fn table(&self) -> String {
        let row = |what: &str, rate: &Rate| {
            format!(
                "| {what} | {:.0} | {:.0} | {:.0} | {:.0} |\n",
                rate.records_per_s, rate.min, rate.max, rate.peak_rss_mib
            )
        };
        format!(
            "{} records, {} interleaved runs\n\n| | records/s: median | min | max | peak RSS, MiB |\n\
             |---|---:|---:|---:|---:|\n{}{}{}\n\
             rebuild compared with the plain consumer: {:.0}x\n\n\
             lag at {} users/s, from before the record is sent to the commit of its row: \
             p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms\n",
            self.records,
            self.runs,
            row("projection rebuild", &self.rebuild),
            row("service catching up", &self.catch_up),
            row("plain consumer, one statement per record", &self.plain),
            self.rebuild_over_plain,
            self.steady.rate,
            self.steady.lag_p50_ms,
            self.steady.lag_p99_ms,
            self.steady.lag_max_ms,
        )
    }
}
