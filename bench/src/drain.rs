//! How fast a backlog is published.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use devstack::step;
use lab::{Cpu, Ends, Lab, Processes, Relay, peak_rss_mib};

/// Between two looks at the topic: the error of a run's length.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long no further record may come; a JVM takes some seconds to its first.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// One run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    pub(crate) rows: u64,
    /// From the last look at the topic that saw no record to the one that saw them all.
    pub(crate) seconds: f64,
    /// What was used in that time, or from the start of the publisher.
    pub(crate) cpu: Cpu,
    /// Of the publisher.
    pub(crate) peak_rss_mib: f64,
}

/// From when on CPU is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuFrom {
    /// From the start of the publisher: the first page is read before the first record can be seen.
    Start,
    /// From just before the first record, which leaves the start of a JVM out.
    FirstRecord,
}

/// Lets the relay publish all rows of the outbox.
pub(crate) async fn by_relay(lab: &Lab, rows: u64, sink: &str) -> Result<Drain> {
    let draining = async {
        lab.topic.recreate().await?;
        let ends = look(lab).await?;
        let relay = Relay::start(lab, sink).await?;
        let drain = watch(lab, ends, rows, relay.pid(), CpuFrom::Start).await?;
        relay.wait_published(rows).await?;
        relay.stop().await?;
        check_total(lab, rows).await?;
        Ok(drain)
    };
    step(&format!("draining, {sink} sink"), draining).await
}

/// Connects to the topic, before anything is started that could be missed.
pub(crate) async fn look(lab: &Lab) -> Result<Ends> {
    let topic = lab.topic.clone();
    tokio::task::spawn_blocking(move || topic.ends()).await?
}

/// Watches the topic until all rows are there.
pub(crate) async fn watch(
    lab: &Lab,
    ends: Ends,
    rows: u64,
    publisher: u32,
    cpu_from: CpuFrom,
) -> Result<Drain> {
    let processes = lab.processes(publisher)?;
    let watching = move || watch_blocking(&ends, rows, processes, cpu_from);
    tokio::task::spawn_blocking(watching).await?
}

fn watch_blocking(
    ends: &Ends,
    rows: u64,
    processes: Processes,
    cpu_from: CpuFrom,
) -> Result<Drain> {
    let (mut started_at, mut cpu) = (Instant::now(), processes.cpu()?);
    let (mut found, mut progress_at) = (0, Instant::now());
    while found < rows {
        std::thread::sleep(POLL_INTERVAL);
        let (looked_at, before) = (Instant::now(), found);
        found = ends.total()?;
        if found == 0 {
            started_at = looked_at;
            if cpu_from == CpuFrom::FirstRecord {
                cpu = processes.cpu()?;
            }
        }
        if found > before {
            progress_at = Instant::now();
        }
        ensure!(
            progress_at.elapsed() < STALL_TIMEOUT,
            "{found} of {rows} records after {:.0?}, and then no more",
            started_at.elapsed()
        );
    }
    Ok(Drain {
        rows,
        seconds: started_at.elapsed().as_secs_f64(),
        cpu: processes.cpu()?.since(cpu),
        peak_rss_mib: peak_rss_mib(processes.publisher)?,
    })
}

/// How many records the topic has.
pub(crate) async fn total(lab: &Lab) -> Result<u64> {
    let topic = lab.topic.clone();
    tokio::task::spawn_blocking(move || topic.ends()?.total()).await?
}

/// Checks that the topic has a record for every row, and none more.
pub(crate) async fn check_total(lab: &Lab, rows: u64) -> Result<()> {
    let total = total(lab).await?;
    ensure!(total == rows, "{total} records for {rows} rows");
    Ok(())
}

/// What several runs say together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of what `figure` says of each run.
    pub(crate) fn of<T>(runs: &[T], figure: impl Fn(&T) -> f64) -> Result<Self> {
        let mut figures: Vec<f64> = runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (figures.first(), figures.last()) else {
            anyhow::bail!("there was no run");
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
