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

use crate::home::Home;

/// How long a program may take to end after it was asked to; then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a new process may take to have an id.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Between the end of a process and its next start: long enough not to burn a core when a program
/// can't start at all, short enough that whoever killed it sees it back within a second.
const RESTART_DELAY: Duration = Duration::from_millis(300);

/// How to start something.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    executable: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    stop_signal: Signal,
}

impl Program {
    /// A program that ends upon SIGTERM. The name is that of its log.
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

    /// Asks with another signal than SIGTERM for its end.
    #[must_use]
    pub(crate) fn stopped_by(mut self, signal: Signal) -> Self {
        self.stop_signal = signal;
        self
    }

    /// Runs the program once, to its end.
    ///
    /// # Errors
    /// If it doesn't end with 0; the error shows what it has written.
    pub async fn run_once(&self, home: &Home) -> Result<()> {
        let status = self.spawn(home)?.wait().await?;
        if !status.success() {
            bail!(
                "{} ended with {status}:\n{}",
                self.name,
                tail(&home.log(&self.name))
            );
        }
        Ok(())
    }

    fn spawn(&self, home: &Home) -> Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(home.log(&self.name))?;
        let mut command = Command::new(&self.executable);
        command
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        home.confine(&mut command);
        let child = command
            .spawn()
            .with_context(|| format!("can't start {}", self.executable.display()))?;
        if let Some(pid) = child.id() {
            let line = format!("{pid} {}\n", self.stop_signal.as_raw());
            fs::write(home.pid_file(&self.name), line)?;
        }
        Ok(child)
    }
}

/// A program that is kept running: when it ends without having been asked to, it is started again.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    wanted: watch::Sender<Wanted>,
    pid: watch::Receiver<Option<u32>>,
    keeper: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Running,
    Held,
    Stopped,
}

impl Process {
    /// Starts `program` and keeps it running.
    pub fn start(home: &Arc<Home>, program: Program) -> Self {
        let (wanted, mut wanted_now) = watch::channel(Wanted::Running);
        let (pid_now, pid) = watch::channel(None);
        let (name, log) = (program.name.clone(), home.log(&program.name));
        let home = Arc::clone(home);
        let keeper = tokio::spawn(async move {
            loop {
                let now = *wanted_now.borrow_and_update();
                match now {
                    Wanted::Running => {}
                    Wanted::Held => {
                        if wanted_now.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Wanted::Stopped => return,
                }
                match program.spawn(&home) {
                    Ok(child) => {
                        pid_now.send_replace(child.id());
                        home.changed().notify_waiters();
                        run_until_unwanted(&program, child, &mut wanted_now).await;
                        let _ = fs::remove_file(home.pid_file(&program.name));
                        pid_now.send_replace(None);
                    }
                    Err(err) => tracing::warn!("{err:#}"),
                }
                home.changed().notify_waiters();
                let now = *wanted_now.borrow();
                if now == Wanted::Running {
                    tokio::time::sleep(RESTART_DELAY).await;
                }
            }
        });
        Self {
            name,
            log,
            wanted,
            pid,
            keeper,
        }
    }

    /// The id of the process that runs now, if one does.
    pub fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// The id of the process, as soon as it runs.
    ///
    /// # Errors
    /// If it can't be started; its log and the error say why.
    pub async fn started(&mut self) -> Result<u32> {
        let running = self.pid.wait_for(Option::is_some);
        let pid = tokio::time::timeout(START_TIMEOUT, running).await;
        let pid = pid.ok().and_then(|running| *running.ok()?);
        pid.with_context(|| format!("{} can't be started", self.name))
    }

    /// Ends the process at once, with SIGKILL; it will be started again.
    pub fn kill(&self) {
        if let Some(pid) = self.pid() {
            send(pid, Signal::KILL);
        }
    }

    /// Suspends the process, with SIGSTOP, until [`resume`](Self::resume).
    pub fn suspend(&self) {
        if let Some(pid) = self.pid() {
            send(pid, Signal::STOP);
        }
    }

    /// Lets a suspended process go on, with SIGCONT.
    pub fn resume(&self) {
        if let Some(pid) = self.pid() {
            send(pid, Signal::CONT);
        }
    }

    /// Ends the process at once, with SIGKILL, and keeps it away until [`release`](Self::release).
    pub async fn kill_and_hold(&mut self) {
        self.wanted.send_replace(Wanted::Held);
        self.kill();
        let _ = self.pid.wait_for(Option::is_none).await;
    }

    /// Asks the process to end, waits until it has, and keeps it away until
    /// [`release`](Self::release).
    pub async fn stop_and_hold(&mut self) {
        self.wanted.send_replace(Wanted::Held);
        let _ = self.pid.wait_for(Option::is_none).await;
    }

    /// Starts the process again after it was held.
    pub async fn release(&mut self) {
        self.wanted.send_replace(Wanted::Running);
        let _ = self.pid.wait_for(Option::is_some).await;
    }

    /// Asks the process to end, and kills it where it takes too long.
    pub async fn stop(self) {
        self.wanted.send_replace(Wanted::Stopped);
        let _ = self.keeper.await;
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// After `limit`; the error shows the last reason and what the process has written.
    pub async fn wait_ready(
        &self,
        limit: Duration,
        mut ready: impl AsyncFnMut() -> Result<()>,
    ) -> Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let Err(reason) = ready().await else {
                return Ok(());
            };
            if tokio::time::Instant::now() > deadline {
                let (name, log) = (&self.name, tail(&self.log));
                bail!("{name} isn't ready after {limit:?} ({reason:#}); its log ends:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits for the child's end; brings it about when it is no longer wanted.
async fn run_until_unwanted(
    program: &Program,
    mut child: Child,
    wanted: &mut watch::Receiver<Wanted>,
) {
    tokio::select! {
        status = child.wait() => report(&program.name, &status),
        () = unwanted(wanted) => {
            if let Some(pid) = child.id() {
                send(pid, program.stop_signal);
            }
            if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                tracing::warn!(program = %program.name, "did not end in time, killed");
                let _ = child.kill().await;
            }
        }
    }
}

async fn unwanted(wanted: &mut watch::Receiver<Wanted>) {
    // An error means that nobody can ask any more: its `Process` was dropped.
    let _ = wanted
        .wait_for(|wanted| *wanted != Wanted::Running)
        .await
        .map(drop);
}

fn report(name: &str, status: &std::io::Result<ExitStatus>) {
    match status {
        Ok(status) => tracing::warn!(program = %name, %status, "ended, starting again"),
        Err(err) => tracing::warn!(program = %name, error = %err, "lost sight of it"),
    }
}

fn send(pid: u32, signal: Signal) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    // It may have ended in this moment, which is as good.
    let _ = kill_process(pid, signal);
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
