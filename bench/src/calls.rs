//! Measures gRPC calls: calls per second, the validation modes while user-service is up, slow or down, and
//! overload by ten times the capacity.

mod overload;
mod throughput;
mod validation;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde::Serialize;

/// Options of the call benchmarks.
#[derive(Args, Clone, Debug)]
pub(crate) struct CallsOptions {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Orders per second in the comparison of validation modes
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    rate: u64,
    /// Runs of each throughput measurement, interleaved with pgbench
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Measure only this part
    #[arg(long)]
    only: Option<Part>,
    /// Write all figures to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Calls per second, compared with pgbench
    Throughput,
    /// The modes of validating that a user exists
    Validation,
    /// Ten times the calls that can be handled
    Overload,
}

/// The report.
#[derive(Debug, Serialize)]
struct Report {
    measured_at: String,
    seconds: u64,
    runs: u32,
    #[serde(flatten)]
    throughput: Option<throughput::Throughput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    validation: Option<Vec<validation::Figures>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overload: Option<overload::Figures>,
}

/// Measures all parts or one, prints the tables and writes the file.
pub(crate) async fn run(options: &CallsOptions) -> Result<()> {
    let is_selected = |part| options.only.is_none_or(|only| only == part);
    let throughput = match is_selected(Part::Throughput) {
        true => Some(throughput::measure(options).await?),
        false => None,
    };
    let validation = match is_selected(Part::Validation) {
        true => Some(validation::measure(options).await?),
        false => None,
    };
    let overload = match is_selected(Part::Overload) {
        true => Some(overload::measure(options).await?),
        false => None,
    };
    let tables = [
        throughput.as_ref().map(throughput::Throughput::table),
        validation.as_deref().map(validation::table),
        overload.as_ref().map(overload::Figures::table),
    ];
    for table in tables.into_iter().flatten() {
        println!("{table}");
    }
    if let Some(path) = &options.json {
        let report = Report {
            measured_at: chrono::Local::now().format("%Y-%m-%d").to_string(),
            seconds: options.seconds,
            runs: options.runs,
            throughput,
            validation,
            overload,
        };
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// Returns a histogram of microseconds up to one minute.
fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_max(60_000_000, 3)?)
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Spread {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Spread {
    /// Summarizes a histogram of microseconds.
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |us: u64| us as f64 / 1_000.0;
        Self {
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            max_ms: ms(histogram.max()),
        }
    }
}
