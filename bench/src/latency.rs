//! Measures the latency from a commit to a consumer, at a steady rate of commits.

mod consumer;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use devstack::step;
use hdrhistogram::Histogram;
use lab::{Change, Lab, Plan, unix_us};
use serde::Serialize;

use crate::{latency::consumer::Consumer, postgres_use::CpuSample};

/// Warm-up before each rate.
const WARM_UP: Duration = Duration::from_secs(3);
/// Warm-up before the first rate, until the JVMs, including the broker's, have compiled the hot code.
const FIRST_WARM_UP_S: u64 = 12;
const FIRST_WARM_UP_RATE: u64 = 2_000;
const IDLE_FOR: Duration = Duration::from_secs(10);
/// Pause after the last commit, before the idle measurement.
const SETTLE_FOR: Duration = Duration::from_secs(2);

/// The figures at one rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    /// Requested commits per second.
    pub(crate) rate: u64,
    /// Achieved commits per second.
    pub(crate) achieved_per_s: f64,
    /// From the timestamp in the row, taken right before its commit, to the consumer.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    /// From the scheduled time of the commit, which includes delays in Postgres.
    pub(crate) since_due_p50_ms: f64,
    pub(crate) since_due_p99_ms: f64,
    /// Percent of a core.
    pub(crate) publisher_cpu_percent: f64,
    pub(crate) postgres_cpu_percent: f64,
    pub(crate) broker_cpu_percent: f64,
    /// The part of Postgres by session, in percent of a core.
    pub(crate) postgres_cpu_percent_by_session: BTreeMap<String, f64>,
}

/// Measures `rate` commits per second for `seconds`, while the process `publisher` publishes.
pub(crate) async fn measure(lab: &Lab, publisher: u32, rate: u64, seconds: u64) -> Result<Latency> {
    let what = format!("latency at {rate} commits/s");
    step(&what, measure_at(lab, publisher, rate, seconds)).await
}

/// Commits for some seconds without measuring.
pub(crate) async fn warm_up(lab: &Lab, publisher: u32) -> Result<()> {
    let warming_up = measure_at(lab, publisher, FIRST_WARM_UP_RATE, FIRST_WARM_UP_S);
    step("warm-up", warming_up).await?;
    Ok(())
}

async fn measure_at(lab: &Lab, publisher: u32, rate: u64, seconds: u64) -> Result<Latency> {
    let measured_for = Duration::from_secs(seconds);
    let plan = Plan {
        change: Change::Event,
        rate,
        warm_up: WARM_UP,
        measured_for,
    };
    let writers = plan.prepare(lab).await?;
    let topic = lab.topic.clone();
    let consumer = tokio::task::spawn_blocking(move || topic.consumer_from_now()).await??;
    let consumer = Consumer::start(consumer, unix_us(SystemTime::now() + WARM_UP));
    let processes = lab.processes(publisher)?;
    let cpu_share = async {
        tokio::time::sleep(WARM_UP).await;
        let (before, sessions_before) = (processes.cpu()?, CpuSample::take(lab).await?);
        tokio::time::sleep(measured_for).await;
        let cpu = processes.cpu()?.since(before);
        let by_session = CpuSample::take(lab).await?.since(&sessions_before);
        Ok::<_, anyhow::Error>((cpu, by_session))
    };
    let (written, (cpu, by_session)) = tokio::try_join!(writers.write(), cpu_share)?;
    let received = consumer.finish(written.committed).await?;
    let since_due = &received.since_due;
    let since_created = &received.since_created;
    ensure!(!since_created.is_empty(), "no record was measured");
    let percent = |cpu_s: f64| cpu_s / measured_for.as_secs_f64() * 100.0;
    Ok(Latency {
        rate,
        achieved_per_s: written.committed_while_measured as f64 / measured_for.as_secs_f64(),
        p50_ms: quantile_ms(since_created, 0.5),
        p99_ms: quantile_ms(since_created, 0.99),
        max_ms: since_created.max() as f64 / 1_000.0,
        since_due_p50_ms: quantile_ms(since_due, 0.5),
        since_due_p99_ms: quantile_ms(since_due, 0.99),
        publisher_cpu_percent: percent(cpu.publisher),
        postgres_cpu_percent: percent(cpu.postgres),
        broker_cpu_percent: percent(cpu.broker),
        postgres_cpu_percent_by_session: by_session
            .into_iter()
            .map(|(session, cpu_s)| (session, percent(cpu_s)))
            .collect(),
    })
}

/// The CPU of a publisher without pending rows, in percent of a core.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Idle {
    pub(crate) publisher_cpu_percent: f64,
    pub(crate) postgres_cpu_percent: f64,
}

pub(crate) async fn measure_idle(lab: &Lab, publisher: u32) -> Result<Idle> {
    let measuring = async {
        tokio::time::sleep(SETTLE_FOR).await;
        let processes = lab.processes(publisher)?;
        let before = processes.cpu()?;
        tokio::time::sleep(IDLE_FOR).await;
        let used = processes.cpu()?.since(before);
        let percent = |cpu_s: f64| cpu_s / IDLE_FOR.as_secs_f64() * 100.0;
        Ok(Idle {
            publisher_cpu_percent: percent(used.publisher),
            postgres_cpu_percent: percent(used.postgres),
        })
    };
    step("idle", measuring).await
}

/// Returns a histogram of microseconds up to one minute; longer values are clamped.
fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_max(60_000_000, 3).context("failed to create a histogram")
}

fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1_000.0
}
