use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use devstack::{Process, Program, built_programs, eventually, free_port};
use serde::Deserialize;
use tokio::process::Command;

use crate::Lab;

const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// The relay as it is built for use, as a process of its own.
pub struct Relay {
    process: Process,
    pid: u32,
    program: PathBuf,
    config: PathBuf,
}

/// One that can be started.
pub struct Configured {
    name: String,
    program: PathBuf,
    config: PathBuf,
}

/// What of its status is looked at.
#[derive(Deserialize)]
struct Status {
    role: String,
    published: u64,
    in_flight: u64,
    error: Option<String>,
}

impl Configured {
    /// One of this name with this source.
    pub fn new(lab: &Lab, sink: &str, name: &str, source: &str) -> Result<Self> {
        let home = &lab.servers.home;
        let admin_addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let brokers = &lab.topic.brokers;
        let config = home.write(
            &format!("{name}.toml"),
            &format!(
                "admin_addr = \"{admin_addr}\"\n\
                 [kafka]\nbrokers = \"{brokers}\"\nsink = \"{sink}\"\n{source}"
            ),
        )?;
        Ok(Self {
            name: name.to_owned(),
            program: home.stage(&built_programs()?.join("outbox-relay"))?,
            config,
        })
    }

    /// Lets it look at everything, and fails if it finds something wrong.
    pub async fn check(&self, lab: &Lab) -> Result<()> {
        Program::new(&format!("{}-check", self.name), &self.program)
            .args(["check"])
            .env("OUTBOX_RELAY_CONFIG", self.config.display())
            .run_once(&lab.servers.home)
            .await
    }

    /// Starts it.
    pub async fn start(self, lab: &Lab) -> Result<Relay> {
        let run = Program::new(&self.name, &self.program)
            .args(["run"])
            .env("OUTBOX_RELAY_CONFIG", self.config.display());
        let mut process = Process::start(&lab.servers.home, run);
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
    /// Starts it with no memory of what was published before.
    pub async fn start(lab: &Lab, sink: &str) -> Result<Self> {
        let forget = "delete from relay_checkpoints";
        lab.sql().await?.batch_execute(forget).await?;
        Self::start_beside(lab, sink, "outbox-relay").await
    }

    /// Starts one of this name that goes on from where another is, or stands by for it.
    pub async fn start_beside(lab: &Lab, sink: &str, name: &str) -> Result<Self> {
        let database_url = &lab.database_url;
        let source = format!("[[source]]\nname = \"bench\"\ndatabase_url = \"{database_url}\"\n");
        Configured::new(lab, sink, name, &source)?.start(lab).await
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it publishes.
    pub async fn wait_ready(&self) -> Result<()> {
        eventually("a relay that leads", async || {
            Ok(self.leads().await.then_some(()))
        })
        .await
    }

    /// Whether it publishes. It may not answer yet.
    pub async fn leads(&self) -> bool {
        (self.status().await).is_ok_and(|status| status.role == "leader")
    }

    /// Waits until it says itself that it has published so many, and nothing is on its way.
    pub async fn wait_published(&self, rows: u64) -> Result<()> {
        eventually(&format!("{rows} rows published"), async || {
            let status = self.status().await?;
            let published = status.published;
            ensure!(
                published <= rows && status.error.is_none(),
                "the relay has published {published} of {rows} rows, and says {:?}",
                status.error
            );
            Ok((published == rows && status.in_flight == 0).then_some(()))
        })
        .await
    }

    /// Ends it as nobody wants to end, and starts it again.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill_and_hold().await;
        self.process.release().await;
        self.pid = self.process.started().await?;
        Ok(())
    }

    /// Ends it as it is meant to end.
    pub async fn stop(self) -> Result<()> {
        let is_same = self.process.pid() == Some(self.pid);
        self.process.stop().await;
        ensure!(is_same, "the relay ended in the middle of the measurement");
        Ok(())
    }

    async fn status(&self) -> Result<Status> {
        let asking = Command::new(&self.program)
            .arg("status")
            .env("OUTBOX_RELAY_CONFIG", &self.config)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(ASK_TIMEOUT, asking).await??;
        ensure!(output.status.success(), "the relay doesn't answer");
        let statuses: Vec<Status> = serde_json::from_slice(&output.stdout)?;
        statuses.into_iter().next().context("no source")
    }
}
