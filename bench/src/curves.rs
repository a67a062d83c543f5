//! What an event costs when the backlog, the payload or the headers grow.

use anyhow::Result;
use serde::Serialize;

use crate::{
    drain,
    lab::{BASE_HEADERS, Backlog, Lab, PAYLOAD_BYTES},
    options::Curves,
    usage::per,
};

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) what: &'static str,
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

/// Runs all of them, with the relay's default sink.
pub(crate) async fn measure(lab: &Lab, sink: &str, reach: Curves) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let backlogs: &[u64] = match reach {
        Curves::Short => &[10_000, 100_000, 1_000_000],
        Curves::Full => &[10_000, 100_000, 1_000_000, 10_000_000],
    };
    for rows in backlogs {
        points.push(run(lab, sink, "backlog", &backlog(*rows, PAYLOAD_BYTES, 0)).await?);
    }
    // About as many bytes each.
    for (rows, payload_bytes) in [(ROWS, 200), (ROWS / 4, 2_000), (ROWS / 20, 20_000)] {
        points.push(run(lab, sink, "payload", &backlog(rows, payload_bytes, 0)).await?);
    }
    for further in [0, 4, 16] {
        points.push(run(lab, sink, "headers", &backlog(ROWS, PAYLOAD_BYTES, further)).await?);
    }
    let holder = lab.sql().await?;
    holder
        .batch_execute("begin; select pg_current_xact_id()")
        .await?;
    let held = backlog(ROWS, PAYLOAD_BYTES, 0);
    points.push(run(lab, sink, "transaction held open", &held).await?);
    holder.batch_execute("rollback").await?;
    Ok(points)
}

async fn run(lab: &Lab, sink: &str, what: &'static str, backlog: &Backlog) -> Result<Point> {
    lab.fill(backlog).await?;
    let drain = drain::by_relay(lab, backlog.rows, sink).await?;
    let us_per_event = |cpu_s: f64| cpu_s * 1e6 / backlog.rows as f64;
    Ok(Point {
        what,
        rows: backlog.rows,
        payload_bytes: backlog.payload_bytes,
        headers: BASE_HEADERS + backlog.further_headers,
        events_per_s: per(drain.rows, drain.seconds),
        relay_us_per_event: us_per_event(drain.cpu.shipper),
        postgres_us_per_event: us_per_event(drain.cpu.postgres),
        broker_us_per_event: us_per_event(drain.cpu.broker),
        peak_rss_mib: drain.peak_rss_mib,
    })
}

fn backlog(rows: u64, payload_bytes: u32, further_headers: u32) -> Backlog {
    Backlog {
        rows,
        payload_bytes,
        further_headers,
    }
}
