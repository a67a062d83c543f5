use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use crate::work_dir::WorkDir;

/// The limit on a graceful stop, after which the process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// The limit on waiting for a new process to be spawned.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause before a restart: long enough to not waste CPU on a program that cannot start, short enough that a killed
/// process is back within a second.
const RESTART_DELAY: Duration = Duration::from_millis(300);

/// A command to run.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    executable: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    stop_signal: Signal,
}

impl Program {
    /// A program that stops on SIGTERM. `name` is the name of its log.
    pub fn new(name: &str, executable: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            executable: executable.into(),
            args: Vec::new(),
            envs: Vec::new(),
            stop_signal: Signal::TERM,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.envs.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets the signal that stops the program, instead of SIGTERM.
    #[must_use]
    pub(crate) fn stop_signal(mut self, signal: Signal) -> Self {
        self.stop_signal = signal;
        self
    }

    /// Runs the program to completion.
    ///
    /// # Errors
    /// If its exit code is not 0; the error contains the end of its log.
    pub async fn run_once(&self, work_dir: &WorkDir) -> Result<()> {
        let status = self.spawn(work_dir)?.wait().await?;
        if !status.success() {
            bail!(
                "{} failed with {status}:\n{}",
                self.name,
                tail(&work_dir.log(&self.name))
            );
        }
        Ok(())
    }

    fn spawn(&self, work_dir: &WorkDir) -> Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(work_dir.log(&self.name))?;
        let mut command = Command::new(&self.executable);
        command
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        work_dir.confine(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("failed to start {}", self.executable.display()))?;
        if let Some(pid) = child.id() {
            let line = format!("{pid} {}\n", self.stop_signal.as_raw());
            fs::write(work_dir.pid_file(&self.name), line)?;
        }
        Ok(child)
    }
}

/// A supervised process: it is restarted when it exits unexpectedly, and stopped when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    target: watch::Sender<TargetState>,
    pid: watch::Receiver<Option<u32>>,
    supervisor: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetState {
    Running,
    Held,
    Stopped,
}

impl Process {
    /// Starts `program` and restarts it whenever it exits.
    pub fn start(work_dir: &Arc<WorkDir>, program: Program) -> Self {
        let (target, mut target_now) = watch::channel(TargetState::Running);
        let (pid_now, pid) = watch::channel(None);
        let (name, log) = (program.name.clone(), work_dir.log(&program.name));
        let work_dir = Arc::clone(work_dir);
        let supervisor = tokio::spawn(async move {
            loop {
                let now = *target_now.borrow_and_update();
                match now {
                    TargetState::Running => {}
                    TargetState::Held => {
                        if target_now.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                    TargetState::Stopped => return,
                }
                match program.spawn(&work_dir) {
                    Ok(child) => {
                        pid_now.send_replace(child.id());
                        work_dir.changed().notify_waiters();
                        run_until_stopped(&program, child, &mut target_now).await;
                        let _ = fs::remove_file(work_dir.pid_file(&program.name));
                        pid_now.send_replace(None);
                    }
                    Err(err) => tracing::warn!("{err:#}"),
                }
                work_dir.changed().notify_waiters();
                if target_now.has_changed().is_err() {
                    return; // The `Process` was dropped.
                }
                let now = *target_now.borrow();
                if now == TargetState::Running {
                    tokio::time::sleep(RESTART_DELAY).await;
                }
            }
        });
        Self {
            name,
            log,
            target,
            pid,
            supervisor,
        }
    }

    /// The current process id, if the process is running.
    pub fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// Waits until the process is running, and returns its id.
    ///
    /// # Errors
    /// If it does not start; the cause is in the log.
    pub async fn started(&mut self) -> Result<u32> {
        let running = self.pid.wait_for(Option::is_some);
        let pid = tokio::time::timeout(START_TIMEOUT, running).await;
        let pid = pid.ok().and_then(|running| *running.ok()?);
        pid.with_context(|| format!("{} failed to start", self.name))
    }

    /// Kills the process with SIGKILL; it is restarted.
    pub fn kill(&self) {
        if let Some(pid) = self.pid() {
            send(pid, Signal::KILL);
        }
    }

    /// Suspends the process with SIGSTOP until [`resume`](Self::resume).
    pub fn suspend(&self) {
        if let Some(pid) = self.pid() {
            send(pid, Signal::STOP);
        }
    }

    /// Resumes a suspended process with SIGCONT.
    pub fn resume(&self) {
        if let Some(pid) = self.pid() {
            send(pid, Signal::CONT);
        }
    }

    /// Kills the process with SIGKILL, without a restart until [`release`](Self::release).
    pub async fn kill_and_hold(&mut self) {
        self.target.send_replace(TargetState::Held);
        self.kill();
        let _ = self.pid.wait_for(Option::is_none).await;
    }

    /// Stops the process gracefully, without a restart until [`release`](Self::release).
    pub async fn stop_and_hold(&mut self) {
        self.target.send_replace(TargetState::Held);
        let _ = self.pid.wait_for(Option::is_none).await;
    }

    /// Restarts a held process.
    pub async fn release(&mut self) {
        self.target.send_replace(TargetState::Running);
        let _ = self.pid.wait_for(Option::is_some).await;
    }

    /// Stops the process gracefully; kills it after a timeout.
    pub async fn stop(self) {
        self.target.send_replace(TargetState::Stopped);
        let _ = self.supervisor.await;
    }

    /// Waits until `probe` succeeds.
    ///
    /// # Errors
    /// After `limit`; the error contains the last failure of `probe` and the end of the log.
    pub async fn wait_ready(
        &self,
        limit: Duration,
        mut probe: impl AsyncFnMut() -> Result<()>,
    ) -> Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let Err(reason) = probe().await else {
                return Ok(());
            };
            if tokio::time::Instant::now() > deadline {
                let (name, log) = (&self.name, tail(&self.log));
                bail!(
                    "{name} is not ready after {limit:?} ({reason:#}); the end of its log:\n{log}"
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits until the child exits, or stops it when the target state changes.
async fn run_until_stopped(
    program: &Program,
    mut child: Child,
    target: &mut watch::Receiver<TargetState>,
) {
    tokio::select! {
        status = child.wait() => log_exit(&program.name, &status),
        () = wait_for_stop(target) => {
            if let Some(pid) = child.id() {
                send(pid, program.stop_signal);
            }
            if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                tracing::warn!(program = %program.name, "did not stop in time, killed");
                let _ = child.kill().await;
            }
        }
    }
}

async fn wait_for_stop(target: &mut watch::Receiver<TargetState>) {
    // An error means that the `Process` was dropped.
    let _ = target
        .wait_for(|target| *target != TargetState::Running)
        .await
        .map(drop);
}

fn log_exit(name: &str, status: &std::io::Result<ExitStatus>) {
    match status {
        Ok(status) => tracing::warn!(program = %name, %status, "exited unexpectedly, restarting"),
        Err(err) => tracing::warn!(program = %name, error = %err, "failed to wait for the process"),
    }
}

fn send(pid: u32, signal: Signal) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    // The process may have exited already.
    let _ = kill_process(pid, signal);
}

/// Returns the last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually;

    #[tokio::test]
    async fn a_dropped_process_is_stopped_and_not_restarted() -> Result<()> {
        let work_dir = Arc::new(WorkDir::new()?);
        let path = work_dir.path().to_owned();
        let mut process = Process::start(&work_dir, Program::new("sleep", "sleep").args(["600"]));
        process.started().await?;
        drop((process, work_dir));
        // The supervisor holds the directory as long as it restarts the process.
        let removed = async || Ok((!path.exists()).then_some(()));
        eventually("the removal of the directory", removed).await
    }
}
