use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use devstack::{Process, Program, built_programs, eventually, free_port};
use serde::Deserialize;
use tokio::process::Command;

use crate::Lab;

const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// A running relay process.
pub struct Relay {
    process: Process,
    pid: u32,
    program: PathBuf,
    config: PathBuf,
}

/// A relay with a configuration file, not started yet.
pub struct ConfiguredRelay {
    name: String,
    program: PathBuf,
    config: PathBuf,
}

/// The used fields of `outbox-relay status`.
#[derive(Deserialize)]
struct Status {
    role: String,
    published: u64,
    in_flight: u64,
    error: Option<String>,
}

impl ConfiguredRelay {
    /// Writes a configuration with this source. `sink` can name a compression: `kafka+zstd`.
    pub fn new(lab: &Lab, sink: &str, name: &str, source: &str) -> Result<Self> {
        let work_dir = &lab.servers.work_dir;
        let admin_addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let brokers = &lab.topic.brokers;
        let (sink, compression) = sink.split_once('+').unwrap_or((sink, "none"));
        let config = work_dir.write(
            &format!("{name}.toml"),
            &format!(
                "admin_addr = \"{admin_addr}\"\n\
                 [kafka]\nbrokers = \"{brokers}\"\nsink = \"{sink}\"\n\
                 compression = \"{compression}\"\n{source}"
            ),
        )?;
        Ok(Self {
            name: name.to_owned(),
            program: work_dir.stage(&built_programs()?.join("outbox-relay"))?,
            config,
        })
    }

    /// Runs `outbox-relay check`, and fails if it reports a failure.
    pub async fn check(&self, lab: &Lab) -> Result<()> {
        Program::new(&format!("{}-check", self.name), &self.program)
            .args(["check"])
            .env("OUTBOX_RELAY_CONFIG", self.config.display())
            .run_once(&lab.servers.work_dir)
            .await
    }

    pub async fn start(self, lab: &Lab) -> Result<Relay> {
        let run = Program::new(&self.name, &self.program)
            .args(["run"])
            .env("OUTBOX_RELAY_CONFIG", self.config.display());
        let mut process = Process::start(&lab.servers.work_dir, run);
        let pid = process.started().await?;
        Ok(Relay {
            process,
            pid,
            program: self.program,
            config: self.config,
        })
    }
}

impl Relay {
    /// Deletes the checkpoints and starts a relay.
    pub async fn start(lab: &Lab, sink: &str) -> Result<Self> {
        let delete = "delete from relay_checkpoints";
        lab.sql().await?.batch_execute(delete).await?;
        Self::start_beside(lab, sink, "outbox-relay").await
    }

    /// Starts a relay that continues from the checkpoint, or is the standby of a running one.
    pub async fn start_beside(lab: &Lab, sink: &str, name: &str) -> Result<Self> {
        let database_url = &lab.relay_database_url;
        let source = format!("[[source]]\nname = \"bench\"\ndatabase_url = \"{database_url}\"\n");
        ConfiguredRelay::new(lab, sink, name, &source)?
            .start(lab)
            .await
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it is the leader.
    pub async fn wait_ready(&self) -> Result<()> {
        eventually("the relay is the leader", async || {
            Ok(self.is_leader().await.then_some(()))
        })
        .await
    }

    /// Returns whether it is the leader; false if it does not respond.
    pub async fn is_leader(&self) -> bool {
        (self.status().await).is_ok_and(|status| status.role == "leader")
    }

    /// Waits until its status reports `rows` published rows and nothing in flight.
    pub async fn wait_published(&self, rows: u64) -> Result<()> {
        eventually(&format!("{rows} rows published"), async || {
            let status = self.status().await?;
            let published = status.published;
            ensure!(
                published <= rows && status.error.is_none(),
                "the relay has published {published} of {rows} rows; its status: {:?}",
                status.error
            );
            Ok((published == rows && status.in_flight == 0).then_some(()))
        })
        .await
    }

    /// Kills the process and restarts it.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill_and_hold().await;
        self.process.release().await;
        self.pid = self.process.started().await?;
        Ok(())
    }

    /// Stops the process gracefully.
    pub async fn stop(self) -> Result<()> {
        let is_same = self.process.pid() == Some(self.pid);
        self.process.stop().await;
        ensure!(is_same, "the relay exited during the measurement");
        Ok(())
    }

    async fn status(&self) -> Result<Status> {
        let output = Command::new(&self.program)
            .arg("status")
            .env("OUTBOX_RELAY_CONFIG", &self.config)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(STATUS_TIMEOUT, output).await??;
        ensure!(output.status.success(), "outbox-relay status failed");
        let statuses: Vec<Status> = serde_json::from_slice(&output.stdout)?;
        statuses
            .into_iter()
            .next()
            .context("the status has no source")
    }
}
