//! What no relay can surpass on this machine: reading alone and producing alone, each as a process of
//! its own.

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

/// What a child process tells on its standard output.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Limit {
    pub(crate) rows: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_s: f64,
    pub(crate) peak_rss_mib: f64,
}

impl Limit {
    /// What this process has used for `rows`.
    fn tell(rows: u64, seconds: f64) -> Result<()> {
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

/// Reads all rows of the outbox, and does nothing with them.
pub(crate) async fn reading(lab: &Lab, rows: u64) -> Result<Limit> {
    let arguments = [("DATABASE_URL", lab.database_url.clone())];
    step("reading alone", run_child("read", &arguments, rows)).await
}

/// Produces as many records as the outbox has rows.
pub(crate) async fn producing(lab: &Lab, rows: u64, payload_bytes: u32) -> Result<Limit> {
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
    step("producing alone", producing).await
}

async fn run_child(subcommand: &str, variables: &[(&str, String)], rows: u64) -> Result<Limit> {
    let running = Command::new(env::current_exe()?)
        .arg(subcommand)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(RUN_TIMEOUT, running).await;
    let output = output.with_context(|| format!("{subcommand} doesn't end"))??;
    ensure!(output.status.success(), "{subcommand} failed");
    let limit: Limit = serde_json::from_slice(&output.stdout)?;
    ensure!(limit.rows == rows, "{} of {rows} rows", limit.rows);
    Ok(limit)
}
