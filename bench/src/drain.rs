//! Measures how fast a backlog is published.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use devstack::step;
use lab::{Cpu, EndOffsets, Lab, Processes, Relay, peak_rss_mib};

use crate::postgres_use;

/// Interval between polls of the topic, which is the error of a run's duration.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Limit for the time without a new record. A JVM takes some seconds to its first one.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The figures of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    pub(crate) rows: u64,
    /// Time from the last poll of the topic that found no record to the first that found all.
    pub(crate) seconds: f64,
    /// CPU used in that time, or since the start of the publisher.
    pub(crate) cpu: Cpu,
    /// Peak memory of the publisher.
    pub(crate) peak_rss_mib: f64,
    /// The size of the topic. 0 for another publisher.
    pub(crate) topic_bytes: u64,
    /// The relay's entries in `pg_stat_statements`. 0 for another publisher.
    pub(crate) statements: usize,
}

/// When the CPU measurement starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuFrom {
    /// At the start of the publisher: it reads the first page before the first record is visible.
    Start,
    /// Right before the first record, which excludes the start of a JVM.
    FirstRecord,
}

/// Measures the relay publishing all rows of the outbox.
pub(crate) async fn by_relay(lab: &Lab, rows: u64, sink: &str) -> Result<Drain> {
    let draining = async {
        lab.topic.recreate().await?;
        let ends = open_ends(lab).await?;
        postgres_use::reset_statements(lab).await?;
        let relay = Relay::start(lab, sink).await?;
        let mut drain = watch(lab, ends, rows, relay.pid(), CpuFrom::Start).await?;
        relay.wait_published(rows).await?;
        relay.stop().await?;
        drain.statements = postgres_use::relay_statements(lab).await?.entries;
        check_total(lab, rows).await?;
        drain.topic_bytes = lab.topic_bytes()?;
        Ok(drain)
    };
    step(&format!("draining, {sink} sink"), draining).await
}

/// Connects to the topic. Call it before starting a publisher, so that no record is missed.
pub(crate) async fn open_ends(lab: &Lab) -> Result<EndOffsets> {
    let topic = lab.topic.clone();
    tokio::task::spawn_blocking(move || topic.ends()).await?
}

/// Polls the topic until all rows are published.
pub(crate) async fn watch(
    lab: &Lab,
    ends: EndOffsets,
    rows: u64,
    publisher: u32,
    cpu_from: CpuFrom,
) -> Result<Drain> {
    let processes = lab.processes(publisher)?;
    let watching = move || watch_blocking(&ends, rows, processes, cpu_from);
    tokio::task::spawn_blocking(watching).await?
}

fn watch_blocking(
    ends: &EndOffsets,
    rows: u64,
    processes: Processes,
    cpu_from: CpuFrom,
) -> Result<Drain> {
    let (mut started_at, mut cpu) = (Instant::now(), processes.cpu()?);
    let (mut found, mut progress_at) = (0, Instant::now());
    while found < rows {
        std::thread::sleep(POLL_INTERVAL);
        let (polled_at, before) = (Instant::now(), found);
        found = ends.total()?;
        if found == 0 {
            started_at = polled_at;
            if cpu_from == CpuFrom::FirstRecord {
                cpu = processes.cpu()?;
            }
        }
        if found > before {
            progress_at = Instant::now();
        }
        ensure!(
            progress_at.elapsed() < STALL_TIMEOUT,
            "{found} of {rows} records after {:.0?}, and no new record for {STALL_TIMEOUT:?}",
            started_at.elapsed()
        );
    }
    Ok(Drain {
        rows,
        seconds: started_at.elapsed().as_secs_f64(),
        cpu: processes.cpu()?.since(cpu),
        peak_rss_mib: peak_rss_mib(processes.publisher)?,
        topic_bytes: 0,
        statements: 0,
    })
}

/// Counts the records in the topic.
pub(crate) async fn count_records(lab: &Lab) -> Result<u64> {
    let topic = lab.topic.clone();
    tokio::task::spawn_blocking(move || topic.ends()?.total()).await?
}

/// Checks that the topic has exactly one record per row.
pub(crate) async fn check_total(lab: &Lab, rows: u64) -> Result<()> {
    let total = count_records(lab).await?;
    ensure!(total == rows, "{total} records for {rows} rows");
    Ok(())
}

/// Median, minimum and maximum of several runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Summarizes one figure of each run.
    pub(crate) fn of<T>(runs: &[T], figure: impl Fn(&T) -> f64) -> Result<Self> {
        let mut figures: Vec<f64> = runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (figures.first(), figures.last()) else {
            anyhow::bail!("no runs");
        };
        let middle = figures.len() / 2;
        let median = match figures.len() % 2 {
            1 => figures[middle],
            _ => f64::midpoint(figures[middle - 1], figures[middle]),
        };
        Ok(Self {
            median,
            min: *min,
            max: *max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |runs: &[f64]| Spread::of(runs, |run| *run).unwrap();
        assert!((spread(&[9.0, 1.0, 2.0]).median - 2.0).abs() < 1e-9);
        assert!((spread(&[9.0, 1.0, 2.0, 4.0]).median - 3.0).abs() < 1e-9);
        assert!((spread(&[9.0, 1.0]).max - 9.0).abs() < 1e-9);
    }
}
