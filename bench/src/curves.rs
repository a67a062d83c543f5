//! What an event costs when the backlog, the payload or the headers grow.

use anyhow::Result;
use serde::Serialize;

use crate::{
    drain::{self, Spread},
    lab::{BASE_HEADERS, Backlog, Lab, PAYLOAD_BYTES},
    options::Curves,
    usage::{Cpu, per},
};

/// One place on a curve.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) what: &'static str,
    pub(crate) runs: u64,
    pub(crate) rows: u64,
    pub(crate) payload_bytes: u32,
    pub(crate) headers: u32,
    pub(crate) events_per_s: f64,
    pub(crate) relay_us_per_event: f64,
    pub(crate) postgres_us_per_event: f64,
    pub(crate) broker_us_per_event: f64,
    pub(crate) peak_rss_mib: f64,
}

/// Rows of the runs in which something else than the backlog changes.
const ROWS: u64 = 200_000;
/// Small backlogs are drained as often as it takes to come to so many rows, up to `MAX_RUNS` times:
/// the clock of /proc ticks in hundredths of a second.
const ROWS_OF_A_POINT: u64 = 400_000;
const MAX_RUNS: u64 = 20;
/// Starts of which the cost of one is the mean.
const STARTS: u32 = 10;
/// A start ends with the relay's first page. Until then it connects to the topic's brokers, and runs
/// code and touches memory for the first time: 2 ms, a quarter of what 10,000 rows take and nothing
/// to 1,000,000.
const START_ROWS: u64 = 1_000;

/// Runs all of them, with the relay's default sink.
pub(crate) async fn measure(lab: &Lab, sink: &str, reach: Curves) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let run = async |what, backlog| run(lab, sink, what, backlog).await;
    let backlogs: &[u64] = match reach {
        Curves::Short => &[10_000, 100_000, 1_000_000],
        Curves::Full => &[10_000, 100_000, 1_000_000, 10_000_000],
    };
    for rows in backlogs {
        points.push(run("backlog", backlog(*rows, PAYLOAD_BYTES, 0)).await?);
    }
    // About as many bytes each.
    for (rows, payload_bytes) in [(ROWS, 200), (ROWS / 4, 2_000), (ROWS / 20, 20_000)] {
        points.push(run("payload", backlog(rows, payload_bytes, 0)).await?);
    }
    for further in [0, 4, 16] {
        points.push(run("headers", backlog(ROWS, PAYLOAD_BYTES, further)).await?);
    }
    let holder = lab.sql().await?;
    holder
        .batch_execute("begin; select pg_current_xact_id()")
        .await?;
    let held = backlog(ROWS, PAYLOAD_BYTES, 0);
    points.push(run("transaction held open", held).await?);
    holder.batch_execute("rollback").await?;
    Ok(points)
}

async fn run(lab: &Lab, sink: &str, what: &'static str, backlog: Backlog) -> Result<Point> {
    let start = start_cost(lab, sink, &backlog).await?;
    lab.fill(&backlog).await?;
    let runs = (ROWS_OF_A_POINT / backlog.rows).clamp(1, MAX_RUNS);
    let mut drains = Vec::new();
    for _ in 0..runs {
        drains.push(drain::by_relay(lab, backlog.rows, sink).await?);
    }
    let us_per_event = |part: fn(Cpu) -> f64| {
        let used: f64 = (drains.iter())
            .map(|drain| part(drain.cpu.since(start)))
            .sum();
        used * 1e6 / (runs * (backlog.rows - START_ROWS)) as f64
    };
    Ok(Point {
        what,
        runs,
        rows: backlog.rows,
        payload_bytes: backlog.payload_bytes,
        headers: BASE_HEADERS + backlog.further_headers,
        events_per_s: Spread::of(&drains, |drain| per(drain.rows, drain.seconds))?.median,
        relay_us_per_event: us_per_event(|cpu| cpu.shipper),
        postgres_us_per_event: us_per_event(|cpu| cpu.postgres),
        broker_us_per_event: us_per_event(|cpu| cpu.broker),
        peak_rss_mib: Spread::of(&drains, |drain| drain.peak_rss_mib)?.max,
    })
}

/// What it takes until a relay has shipped the first rows of such a backlog. It is the same for any
/// number of them, and would be most of what a small one costs.
async fn start_cost(lab: &Lab, sink: &str, backlog: &Backlog) -> Result<Cpu> {
    let first = Backlog {
        rows: START_ROWS,
        ..backlog.clone()
    };
    lab.fill(&first).await?;
    let mut cost = Cpu::default();
    for _ in 0..STARTS {
        cost = cost.plus(drain::by_relay(lab, START_ROWS, sink).await?.cpu);
    }
    Ok(cost.divided_by(STARTS.into()))
}

fn backlog(rows: u64, payload_bytes: u32, further_headers: u32) -> Backlog {
    Backlog {
        rows,
        payload_bytes,
        further_headers,
    }
}
