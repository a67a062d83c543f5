//! Measures the cost per event by backlog, payload size, number of headers and compression.

use std::collections::BTreeMap;

use anyhow::Result;
use lab::{BASE_HEADERS, Backlog, Cpu, Lab, PAYLOAD_BYTES, per};
use serde::Serialize;

use crate::{
    drain::{self, Drain, Spread},
    options::Curves,
};

/// One point of a curve.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) what: &'static str,
    pub(crate) runs: u64,
    pub(crate) rows: u64,
    pub(crate) payload_bytes: u32,
    pub(crate) headers: u32,
    /// On the broker's disk.
    pub(crate) topic_bytes_per_event: f64,
    pub(crate) events_per_s: f64,
    pub(crate) relay_us_per_event: f64,
    pub(crate) postgres_us_per_event: f64,
    pub(crate) broker_us_per_event: f64,
    pub(crate) peak_rss_mib: f64,
}

/// Values of `kafka.compression`.
const CODECS: [&str; 4] = ["none", "gzip", "lz4", "zstd"];
/// Rows of the runs in which the payload or the headers vary.
const ROWS: u64 = 200_000;
/// Small backlogs are drained several times per round, up to this many rows in total, because the CPU
/// of single runs differs by up to 10 %.
const ROWS_PER_ROUND: u64 = 80_000;
const MAX_RUNS_PER_ROUND: u64 = 8;
/// A machine can be slower for minutes. Rounds interleave the backlogs, and medians are compared.
const ROUNDS: u64 = 5;
/// Larger backlogs are drained in the first round only.
const MAX_ROWS_OF_LATER_ROUNDS: u64 = 1_000_000;
/// Measured starts per round.
const STARTS: u32 = 4;
/// A start ends with the relay's first page. It connects to the brokers, and runs code and touches
/// memory for the first time. That takes 2 ms: a quarter of the time for 10,000 rows, and negligible
/// for 1,000,000.
const START_ROWS: u64 = 1_000;

/// Measures all curves with this sink.
pub(crate) async fn measure(lab: &Lab, sink: &str, reach: Curves) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let run = async |what, backlog| run(lab, sink, what, backlog).await;
    let backlogs: &[u64] = match reach {
        Curves::Short => &[10_000, 100_000, 1_000_000],
        Curves::Full => &[10_000, 100_000, 1_000_000, 10_000_000],
    };
    points.extend(interleaved(lab, sink, backlogs).await?);
    // Similar total sizes.
    for (rows, payload_bytes) in [(ROWS, 200), (ROWS / 4, 2_000), (ROWS / 20, 20_000)] {
        points.push(run("payload", backlog(rows, payload_bytes, 0)).await?);
    }
    for further in [0, 4, 16] {
        points.push(run("headers", backlog(ROWS, PAYLOAD_BYTES, further)).await?);
    }
    for (rows, payload_bytes) in [(ROWS, 200), (ROWS / 4, 2_000)] {
        for codec in CODECS {
            let sink = format!("{sink}+{codec}");
            let backlog = backlog(rows, payload_bytes, 0);
            points.push(self::run(lab, &sink, codec, backlog).await?);
        }
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

/// Measures backlogs of the same rows and different lengths.
async fn interleaved(lab: &Lab, sink: &str, backlogs: &[u64]) -> Result<Vec<Point>> {
    let (mut starts, mut drains) = (Vec::new(), BTreeMap::<u64, Vec<Drain>>::new());
    for round in 0..ROUNDS {
        starts.extend(measure_starts(lab, sink, &backlog(START_ROWS, PAYLOAD_BYTES, 0)).await?);
        for rows in backlogs {
            if round > 0 && *rows > MAX_ROWS_OF_LATER_ROUNDS {
                continue;
            }
            let drained = drain(lab, sink, &backlog(*rows, PAYLOAD_BYTES, 0)).await?;
            drains.entry(*rows).or_default().extend(drained);
        }
    }
    let points = drains.iter().map(|(rows, drains)| {
        Point::of(
            "backlog",
            &backlog(*rows, PAYLOAD_BYTES, 0),
            &starts,
            drains,
        )
    });
    points.collect()
}

async fn run(lab: &Lab, sink: &str, what: &'static str, backlog: Backlog) -> Result<Point> {
    let starts = measure_starts(lab, sink, &backlog).await?;
    let drains = drain(lab, sink, &backlog).await?;
    Point::of(what, &backlog, &starts, &drains)
}

/// Drains a backlog as often as one round requires.
async fn drain(lab: &Lab, sink: &str, backlog: &Backlog) -> Result<Vec<Drain>> {
    lab.write_backlog(backlog).await?;
    let mut drains = Vec::new();
    for _ in 0..(ROWS_PER_ROUND / backlog.rows).clamp(1, MAX_RUNS_PER_ROUND) {
        drains.push(drain::by_relay(lab, backlog.rows, sink).await?);
    }
    Ok(drains)
}

/// Measures a relay from its start until it has published the first rows of such a backlog. This is
/// independent of the backlog and would be most of the cost of a small one.
async fn measure_starts(lab: &Lab, sink: &str, backlog: &Backlog) -> Result<Vec<Drain>> {
    let first = Backlog {
        rows: START_ROWS,
        ..backlog.clone()
    };
    lab.write_backlog(&first).await?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(drain::by_relay(lab, START_ROWS, sink).await?);
    }
    Ok(starts)
}

impl Point {
    /// Returns whether it belongs to the comparison of codecs.
    pub(crate) fn is_of_codec(&self) -> bool {
        CODECS.contains(&self.what)
    }

    fn of(
        what: &'static str,
        backlog: &Backlog,
        starts: &[Drain],
        drains: &[Drain],
    ) -> Result<Self> {
        let us_per_event = |part: fn(Cpu) -> f64| {
            let start = Spread::of(starts, |drain| part(drain.cpu))?.median;
            let used = Spread::of(drains, |drain| part(drain.cpu))?.median;
            anyhow::Ok((used - start) * 1e6 / (backlog.rows - START_ROWS) as f64)
        };
        Ok(Self {
            what,
            runs: drains.len() as u64,
            rows: backlog.rows,
            payload_bytes: backlog.payload_bytes,
            headers: BASE_HEADERS + backlog.further_headers,
            topic_bytes_per_event: Spread::of(drains, |drain| {
                drain.topic_bytes as f64 / drain.rows as f64
            })?
            .median,
            events_per_s: Spread::of(drains, |drain| per(drain.rows, drain.seconds))?.median,
            relay_us_per_event: us_per_event(|cpu| cpu.publisher)?,
            postgres_us_per_event: us_per_event(|cpu| cpu.postgres)?,
            broker_us_per_event: us_per_event(|cpu| cpu.broker)?,
            peak_rss_mib: Spread::of(drains, |drain| drain.peak_rss_mib)?.max,
        })
    }
}

fn backlog(rows: u64, payload_bytes: u32, further_headers: u32) -> Backlog {
    Backlog {
        rows,
        payload_bytes,
        further_headers,
    }
}
