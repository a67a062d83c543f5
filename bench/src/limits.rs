//! Upper bounds for a relay on this machine: reading only and producing only, each in its own process.

mod produce;
mod read;

use std::{env, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use devstack::step;
use lab::{Lab, cpu_s, peak_rss_mib};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

pub(crate) use produce::{ProduceOptions, produce};
pub(crate) use read::{ReadOptions, read};

use crate::drain::check_total;

const RUN_TIMEOUT: Duration = Duration::from_secs(600);

/// The figures that a child process prints to stdout.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Limit {
    pub(crate) rows: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_s: f64,
    pub(crate) peak_rss_mib: f64,
}

impl Limit {
    /// Prints the resource use of this process for `rows`.
    fn print(rows: u64, seconds: f64) -> Result<()> {
        let own = std::process::id();
        let limit = Self {
            rows,
            seconds,
            cpu_s: cpu_s(own)?,
            peak_rss_mib: peak_rss_mib(own)?,
        };
        println!("{}", serde_json::to_string(&limit)?);
        Ok(())
    }
}

/// Measures reading all rows of the outbox.
pub(crate) async fn measure_read(lab: &Lab, rows: u64) -> Result<Limit> {
    let arguments = [("DATABASE_URL", lab.database_url.clone())];
    step("read only", run_child("read", &arguments, rows)).await
}

/// Measures producing as many records as the outbox has rows.
pub(crate) async fn measure_produce(lab: &Lab, rows: u64, payload_bytes: u32) -> Result<Limit> {
    let producing = async {
        lab.topic.recreate().await?;
        let arguments = [
            ("BROKERS", lab.topic.brokers.clone()),
            ("TOPIC", lab.topic.name.clone()),
            ("ROWS", rows.to_string()),
            ("PAYLOAD_BYTES", payload_bytes.to_string()),
        ];
        let limit = run_child("produce", &arguments, rows).await?;
        check_total(lab, rows).await?;
        Ok(limit)
    };
    step("produce only", producing).await
}

async fn run_child(subcommand: &str, variables: &[(&str, String)], rows: u64) -> Result<Limit> {
    let running = Command::new(env::current_exe()?)
        .arg(subcommand)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(RUN_TIMEOUT, running).await;
    let output =
        output.with_context(|| format!("{subcommand} did not finish within {RUN_TIMEOUT:?}"))??;
    ensure!(output.status.success(), "{subcommand} failed");
    let limit: Limit = serde_json::from_slice(&output.stdout)?;
    ensure!(
        limit.rows == rows,
        "{subcommand} processed {} of {rows} rows",
        limit.rows
    );
    Ok(limit)
}
