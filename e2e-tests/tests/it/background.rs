//! Interrupting `make up`.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use devstack::{WAIT_TIMEOUT, built_programs, eventually};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A running `devstack up` and the supervisor that it started.
struct Starting {
    up: Child,
    supervisor: Pid,
}

impl Starting {
    async fn start(folder: &Path) -> Result<Self> {
        let up = Command::new(built_programs()?.join("devstack"))
            .arg("--folder")
            .arg(folder)
            .arg("up")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // It handles signals once it has logged anything.
        let log = folder.join("supervisor.log");
        eventually("a supervisor", async || {
            Ok(fs::read(&log)
                .is_ok_and(|text| !text.is_empty())
                .then_some(()))
        })
        .await?;
        let pid = fs::read_to_string(folder.join("supervisor.pid"))?;
        let supervisor = Pid::from_raw(pid.trim().parse()?).context("no process")?;
        Ok(Self { up, supervisor })
    }

    /// Waits until `up` has failed, the supervisor has exited, and no files are left.
    async fn wait_for_end(mut self, folder: &Path) -> Result<()> {
        let waiting = tokio::task::spawn_blocking(move || self.up.wait());
        let status = tokio::time::timeout(WAIT_TIMEOUT, waiting)
            .await
            .context("up is still running")???;
        assert!(!status.success(), "{status}");
        assert!(
            test_kill_process(self.supervisor).is_err(),
            "the supervisor is still running"
        );
        for file in ["supervisor.pid", "endpoints.env"] {
            assert!(!folder.join(file).exists(), "{file} still exists");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_during_startup_stops_everything() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let starting = Starting::start(folder.path()).await?;
    let up = Pid::from_child(&starting.up);
    kill_process(up, Signal::INT)?;
    starting.wait_for_end(folder.path()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn down_during_startup_stops_everything() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let starting = Starting::start(folder.path()).await?;
    let down = Command::new(built_programs()?.join("devstack"))
        .arg("--folder")
        .arg(folder.path())
        .arg("down")
        .output()?;
    assert!(down.status.success(), "{down:?}");
    starting.wait_for_end(folder.path()).await
}
