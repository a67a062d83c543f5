use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Options of the relay benchmark. The defaults take about two minutes and show the order of
/// magnitude. Use a million rows and five runs for figures to quote.
#[derive(Args, Clone, Debug)]
pub(crate) struct RelayOptions {
    /// Rows in the backlog
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    pub(crate) rows: u64,
    /// Interleaved runs of each program
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    /// Sinks of the relay (kafka, rdkafka); only the drain is measured with all of them, the rest with the first
    #[arg(long, value_delimiter = ',', default_values = ["kafka", "rdkafka"])]
    pub(crate) sinks: Vec<String>,
    /// Commits per second at which latency is measured
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000, 10_000], value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) rates: Vec<u64>,
    /// Seconds of each latency measurement, after 3 s of warm-up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds: u64,
    /// Also measure Debezium on the same rows
    #[arg(long)]
    pub(crate) debezium: bool,
    /// Also measure the drain by backlog, payload size and headers; `full` goes up to 10,000,000 rows
    #[arg(long, num_args = 0..=1, default_missing_value = "short")]
    pub(crate) curves: Option<Curves>,
    /// Write all figures to this file as JSON
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write the tables to this file as Markdown
    #[arg(long)]
    pub(crate) markdown: Option<PathBuf>,
}

/// The largest backlog of the curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Curves {
    /// Up to 1,000,000 rows.
    Short,
    /// Up to 10,000,000 rows.
    Full,
}
