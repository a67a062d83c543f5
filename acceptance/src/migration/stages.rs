//! What was done when, so that it can be told what it cost whom.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use devstack::{Sql, step};
use lab::unix_us;
use serde::Serialize;

use super::{
    judge::Arrival,
    steps::{Attempt, Step},
    writers::{Transaction, longest},
};

/// Attempts of a step that `lock_timeout` strikes, and what writers get between them.
const ATTEMPTS: u32 = 10;
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
/// After a step: what queued behind it is not the next one's.
const SETTLE: Duration = Duration::from_secs(1);

/// From the first stage to the last.
#[derive(Default)]
pub(super) struct Stages(Vec<Stage>);

/// Something that was done while writers went on.
struct Stage {
    name: String,
    attempts: u32,
    from: Instant,
    last_from: Instant,
    to: Instant,
    from_ms: i64,
    to_ms: i64,
}

/// What it cost.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) attempts: u32,
    pub(super) took_ms: f64,
    /// Of this, the attempt that did it.
    pub(super) last_attempt_ms: f64,
    /// The longest of the transactions that were open meanwhile.
    pub(super) longest_transaction_ms: f64,
    /// Of events that came meanwhile, from the row to the topic; not of transactions that took their time.
    pub(super) event_p50_ms: Option<i64>,
    pub(super) event_max_ms: Option<i64>,
}

impl Stages {
    /// Does something, which has this name.
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

    /// Lets time go by.
    pub(super) async fn wait(&mut self, name: &str, time: Duration) -> Result<()> {
        let waiting = async {
            tokio::time::sleep(time).await;
            Ok(())
        };
        self.run(name, waiting).await
    }

    /// Runs a documented step, once more where its locks were not to be had. Returns what it has
    /// printed.
    pub(super) async fn run_documented(
        &mut self,
        sql: &Sql,
        todo: &Step,
    ) -> Result<Option<String>> {
        let start = now();
        let (mut attempts, mut last_from) = (0, start.0);
        let running = async {
            while attempts < ATTEMPTS {
                attempts += 1;
                last_from = Instant::now();
                if let Attempt::Done(printed) = todo.attempt(sql).await? {
                    return Ok(printed);
                }
                tokio::time::sleep(BETWEEN_ATTEMPTS).await;
            }
            bail!("{} found no moment for its lock", todo.title)
        };
        let printed = step(&todo.title, running).await?;
        self.push(&todo.title, attempts, start, last_from);
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

    /// What each of them cost.
    pub(super) fn found(&self, transactions: &[Transaction], arrivals: &[Arrival]) -> Vec<Found> {
        let found = |stage: &Stage| {
            let meanwhile = |arrival: &&Arrival| {
                (stage.from_ms..stage.to_ms).contains(&arrival.at_ms) && !arrival.of_long
            };
            let mut late: Vec<i64> = (arrivals.iter().filter(meanwhile))
                .map(|arrival| arrival.late_ms)
                .collect();
            late.sort_unstable();
            let took_ms = |from: Instant| (stage.to - from).as_secs_f64() * 1_000.0;
            let longest = longest(transactions, stage.from, stage.to);
            Found {
                name: stage.name.clone(),
                attempts: stage.attempts,
                took_ms: took_ms(stage.from),
                last_attempt_ms: took_ms(stage.last_from),
                longest_transaction_ms: longest.as_secs_f64() * 1_000.0,
                event_p50_ms: late.get(late.len() / 2).copied(),
                event_max_ms: late.last().copied(),
            }
        };
        self.0.iter().map(found).collect()
    }

    /// The longest time without an event that had not come before, of what ended while these stages
    /// lasted.
    pub(super) fn longest_pause_ms(&self, arrivals: &[Arrival], stages: &[&str]) -> i64 {
        let is_meant = |at_ms: i64| {
            let meant = self
                .0
                .iter()
                .filter(|stage| stages.contains(&stage.name.as_str()));
            meant
                .into_iter()
                .any(|stage| (stage.from_ms..=stage.to_ms).contains(&at_ms))
        };
        let pairs = arrivals.windows(2);
        let pairs = pairs.filter(|pair| is_meant(pair[1].at_ms));
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
