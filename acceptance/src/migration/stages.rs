//! The stages of the migration, and how each affected writers and events.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use devstack::{Sql, step};
use lab::unix_us;
use serde::Serialize;

use super::{
    audit::FirstRecord,
    steps::{Attempt, Step},
    writers::{Transaction, longest_duration},
};

/// Attempts of a step that runs into `lock_timeout`, and the pause between them.
const ATTEMPTS: u32 = 10;
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
/// Pause after a step, so that transactions queued behind it do not count for the next step.
const SETTLE: Duration = Duration::from_secs(1);

/// The stages so far, in order.
#[derive(Default)]
pub(super) struct Stages(Vec<Stage>);

/// A stage, during which the writers continue.
struct Stage {
    name: String,
    attempts: u32,
    from: Instant,
    last_from: Instant,
    to: Instant,
    from_ms: i64,
    to_ms: i64,
}

/// The measurements of a stage.
#[derive(Debug, Serialize)]
pub(super) struct StageReport {
    pub(super) name: String,
    pub(super) attempts: u32,
    pub(super) took_ms: f64,
    /// The part of the successful attempt.
    pub(super) last_attempt_ms: f64,
    /// The longest transaction that was open during the stage.
    pub(super) longest_transaction_ms: f64,
    /// Latency from the row to the topic of events that were published during the stage, without those of
    /// long transactions.
    pub(super) event_p50_ms: Option<i64>,
    pub(super) event_max_ms: Option<i64>,
}

impl Stages {
    /// Runs `work` as a stage.
    pub(super) async fn run<T>(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let (from, from_ms) = now();
        let result = step(name, work).await?;
        self.push(name, 1, (from, from_ms), from);
        Ok(result)
    }

    /// Waits as a stage.
    pub(super) async fn wait(&mut self, name: &str, time: Duration) -> Result<()> {
        let waiting = async {
            tokio::time::sleep(time).await;
            Ok(())
        };
        self.run(name, waiting).await
    }

    /// Runs a documented step and retries it if it does not get its locks. Returns its output.
    pub(super) async fn run_documented(
        &mut self,
        sql: &Sql,
        documented: &Step,
    ) -> Result<Option<String>> {
        let start = now();
        let (mut attempts, mut last_from) = (0, start.0);
        let running = async {
            while attempts < ATTEMPTS {
                attempts += 1;
                last_from = Instant::now();
                if let Attempt::Done(printed) = documented.attempt(sql).await? {
                    return Ok(printed);
                }
                tokio::time::sleep(BETWEEN_ATTEMPTS).await;
            }
            bail!(
                "{} did not get its lock in {ATTEMPTS} attempts",
                documented.title
            )
        };
        let printed = step(&documented.title, running).await?;
        self.push(&documented.title, attempts, start, last_from);
        tokio::time::sleep(SETTLE).await;
        Ok(printed)
    }

    fn push(
        &mut self,
        name: &str,
        attempts: u32,
        (from, from_ms): (Instant, i64),
        last_from: Instant,
    ) {
        let (to, to_ms) = now();
        self.0.push(Stage {
            name: name.to_owned(),
            attempts,
            from,
            last_from,
            to,
            from_ms,
            to_ms,
        });
    }

    /// Measures each stage.
    pub(super) fn report(
        &self,
        transactions: &[Transaction],
        events: &[FirstRecord],
    ) -> Vec<StageReport> {
        let report = |stage: &Stage| {
            let is_in_stage = |event: &&FirstRecord| {
                (stage.from_ms..stage.to_ms).contains(&event.at_ms) && !event.from_long_transaction
            };
            let mut latencies: Vec<i64> = (events.iter().filter(is_in_stage))
                .map(|event| event.latency_ms)
                .collect();
            latencies.sort_unstable();
            let took_ms = |from: Instant| (stage.to - from).as_secs_f64() * 1_000.0;
            let longest = longest_duration(transactions, stage.from, stage.to);
            StageReport {
                name: stage.name.clone(),
                attempts: stage.attempts,
                took_ms: took_ms(stage.from),
                last_attempt_ms: took_ms(stage.last_from),
                longest_transaction_ms: longest.as_secs_f64() * 1_000.0,
                event_p50_ms: latencies.get(latencies.len() / 2).copied(),
                event_max_ms: latencies.last().copied(),
            }
        };
        self.0.iter().map(report).collect()
    }

    /// Returns the longest time without a new event that ended during one of these stages.
    pub(super) fn longest_pause_ms(&self, events: &[FirstRecord], stages: &[&str]) -> i64 {
        let is_in_stages = |at_ms: i64| {
            let selected = self
                .0
                .iter()
                .filter(|stage| stages.contains(&stage.name.as_str()));
            selected
                .into_iter()
                .any(|stage| (stage.from_ms..=stage.to_ms).contains(&at_ms))
        };
        let pairs = events.windows(2);
        let pairs = pairs.filter(|pair| is_in_stages(pair[1].at_ms));
        pairs
            .map(|pair| pair[1].at_ms - pair[0].at_ms)
            .max()
            .unwrap_or(0)
    }
}

fn now() -> (Instant, i64) {
    let ms = unix_us(SystemTime::now()) / 1_000;
    (Instant::now(), i64::try_from(ms).unwrap_or(i64::MAX))
}
