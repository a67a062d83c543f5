//! The figures, as in the JSON file.

use anyhow::Result;
use lab::{Machine, per};
use serde::Serialize;

use crate::{
    curves::Point,
    drain::{Drain, Spread},
    latency::{Idle, Latency},
    limits::Limit,
    postgres_use::Statements,
};

/// The report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) measured_at: String,
    pub(crate) machine: Machine,
    pub(crate) rows: u64,
    pub(crate) payload_bytes: u32,
    pub(crate) runs: u32,
    /// The relay with the first sink.
    pub(crate) drain: DrainFigures,
    /// The relay with the rdkafka sink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drain_rdkafka: Option<DrainFigures>,
    pub(crate) limits: LimitFigures,
    /// The relay with the first sink.
    pub(crate) latency: Vec<Latency>,
    /// The relay's statements during these measurements.
    pub(crate) statements: Statements,
    pub(crate) idle: Idle,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) debezium: Option<DebeziumFigures>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) curves: Vec<Point>,
}

/// Debezium, tuned for each measurement, and with its defaults.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DebeziumFigures {
    pub(crate) version: &'static str,
    #[serde(flatten)]
    pub(crate) tuned: DrainFigures,
    pub(crate) with_defaults: DrainFigures,
    pub(crate) latency: Vec<Latency>,
}

/// Medians of the runs of one program, with the lowest and highest rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DrainFigures {
    pub(crate) program: String,
    pub(crate) events_per_s: f64,
    pub(crate) events_per_s_min: f64,
    pub(crate) events_per_s_max: f64,
    pub(crate) events_per_cpu_s: f64,
    pub(crate) events_per_postgres_cpu_s: f64,
    pub(crate) events_per_broker_cpu_s: f64,
    /// The highest of all runs.
    pub(crate) peak_rss_mib: f64,
    /// The relay's entries in `pg_stat_statements`, the most of all runs.
    pub(crate) statements: usize,
}

/// Figures of reading only and producing only.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LimitFigures {
    pub(crate) read_rows_per_s: f64,
    pub(crate) read_rows_per_s_min: f64,
    pub(crate) read_rows_per_s_max: f64,
    pub(crate) read_rows_per_cpu_s: f64,
    pub(crate) read_peak_rss_mib: f64,
    pub(crate) produce_events_per_s: f64,
    pub(crate) produce_events_per_s_min: f64,
    pub(crate) produce_events_per_s_max: f64,
    pub(crate) produce_events_per_cpu_s: f64,
    pub(crate) produce_peak_rss_mib: f64,
}

impl DrainFigures {
    pub(crate) fn of(program: &str, runs: &[Drain]) -> Result<Self> {
        let rate = Spread::of(runs, |run| per(run.rows, run.seconds))?;
        let per_cpu_s =
            |cpu_s: fn(&Drain) -> f64| Spread::of(runs, |run| per(run.rows, cpu_s(run)));
        Ok(Self {
            program: program.to_owned(),
            events_per_s: rate.median,
            events_per_s_min: rate.min,
            events_per_s_max: rate.max,
            events_per_cpu_s: per_cpu_s(|run| run.cpu.publisher)?.median,
            events_per_postgres_cpu_s: per_cpu_s(|run| run.cpu.postgres)?.median,
            events_per_broker_cpu_s: per_cpu_s(|run| run.cpu.broker)?.median,
            peak_rss_mib: Spread::of(runs, |run| run.peak_rss_mib)?.max,
            statements: runs.iter().map(|run| run.statements).max().unwrap_or(0),
        })
    }
}

impl LimitFigures {
    pub(crate) fn of(reading: &[Limit], producing: &[Limit]) -> Result<Self> {
        let rate = |runs: &[Limit]| Spread::of(runs, |run| per(run.rows, run.seconds));
        let per_cpu_s = |runs: &[Limit]| Spread::of(runs, |run| per(run.rows, run.cpu_s));
        let peak_rss_mib = |runs: &[Limit]| Spread::of(runs, |run| run.peak_rss_mib);
        let (read, produce) = (rate(reading)?, rate(producing)?);
        Ok(Self {
            read_rows_per_s: read.median,
            read_rows_per_s_min: read.min,
            read_rows_per_s_max: read.max,
            read_rows_per_cpu_s: per_cpu_s(reading)?.median,
            read_peak_rss_mib: peak_rss_mib(reading)?.max,
            produce_events_per_s: produce.median,
            produce_events_per_s_min: produce.min,
            produce_events_per_s_max: produce.max,
            produce_events_per_cpu_s: per_cpu_s(producing)?.median,
            produce_peak_rss_mib: peak_rss_mib(producing)?.max,
        })
    }
}
