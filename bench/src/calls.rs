//! The services' calls: what each way of validation costs when user-service is well, slow and away,
//! and what ten times too many calls do.

mod overload;
mod proxy;
mod validation;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

/// What to measure of the services' calls.
#[derive(Args, Clone, Debug)]
pub(crate) struct CallsOptions {
    /// Seconds that each condition is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Orders a second, while ways of validation are compared
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    rate: u64,
    /// Write all figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    measured_at: String,
    validation: Vec<validation::Figures>,
    overload: overload::Figures,
}

/// Measures both, and tells.
pub(crate) async fn run(options: &CallsOptions) -> Result<()> {
    let report = Report {
        measured_at: chrono::Local::now().format("%Y-%m-%d").to_string(),
        validation: validation::measure(options).await?,
        overload: overload::measure(options).await?,
    };
    println!(
        "{}\n{}",
        validation::table(&report.validation),
        report.overload.table()
    );
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// Latencies, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Spread {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Spread {
    /// Of microseconds.
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |us: u64| us as f64 / 1_000.0;
        Self {
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            max_ms: ms(histogram.max()),
        }
    }
}
