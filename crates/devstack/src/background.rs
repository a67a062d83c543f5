//! `up` and `down`: a supervisor process in the background, and the endpoints file that it writes.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use devstack::{Process, Servers, Stack, step};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::signal::unix::{SignalKind, signal};

const ENDPOINTS: &str = "endpoints.env";
const PID: &str = "supervisor.pid";
const LOG: &str = "supervisor.log";
/// The limit on the shutdown of the system; longer than that of each program.
const DOWN_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Starts the supervisor, and waits until the system is healthy.
pub(crate) async fn up(folder: &Path) -> Result<ExitCode> {
    if running_supervisor(folder).is_some() {
        eprintln!("The system is already running; `make down` stops it.");
        print!("{}", introduction(folder)?);
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let _ = fs::remove_file(folder.join(ENDPOINTS));
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let log = File::create(folder.join(LOG))?;
    let mut supervisor = Command::new(std::env::current_exe()?)
        .arg("--folder")
        .arg(fs::canonicalize(folder)?)
        .arg("supervise")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Keeps running when the terminal closes.
        .process_group(0)
        .spawn()?;
    fs::write(folder.join(PID), supervisor.id().to_string())?;
    let mut is_stopping = false;
    let mut log = File::open(folder.join(LOG))?;
    loop {
        let is_up = folder.join(ENDPOINTS).exists();
        let mut text = String::new();
        log.read_to_string(&mut text)?;
        eprint!("{text}");
        if is_up && !is_stopping {
            print!("{}", introduction(folder)?);
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(status) = supervisor.try_wait()? {
            log.seek(SeekFrom::End(0))?;
            let _ = fs::remove_file(folder.join(PID));
            if is_stopping {
                return Ok(ExitCode::FAILURE);
            }
            bail!(
                "the system failed to start ({status}); see {}",
                folder.join(LOG).display()
            );
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => continue,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if is_stopping {
            bail!("interrupted during the shutdown; run `make down` to stop the rest");
        }
        eprintln!("Received a shutdown signal, stopping the system.");
        is_stopping = true;
        // It has its own process group and does not receive the terminal's Ctrl-C.
        if let Some(pid) = running_supervisor(folder) {
            kill_process(pid, Signal::TERM).context("failed to stop the supervisor")?;
        }
    }
}

/// Stops the supervisor, which stops the system.
pub(crate) async fn down(folder: &Path) -> Result<ExitCode> {
    let Some(pid) = running_supervisor(folder) else {
        eprintln!("The system is not running.");
        return Ok(ExitCode::SUCCESS);
    };
    kill_process(pid, Signal::TERM).context("failed to stop the supervisor")?;
    let stopped = async {
        while running_supervisor(folder).is_some() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    step("stopping the system", async {
        tokio::time::timeout(DOWN_TIMEOUT, stopped)
            .await
            .context("the supervisor did not stop within 60 s")?
    })
    .await?;
    // The supervisor removes the file itself, unless it was killed.
    let _ = fs::remove_file(folder.join(PID));
    Ok(ExitCode::SUCCESS)
}

/// Runs the system until SIGTERM, then removes it.
pub(crate) async fn supervise(folder: &Path) -> Result<ExitCode> {
    let result = run_system(folder).await;
    for file in [ENDPOINTS, PID] {
        let _ = fs::remove_file(folder.join(file));
    }
    result
}

async fn run_system(folder: &Path) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let mut terminate = signal(SignalKind::terminate())?;
    let starting = async {
        let servers = Servers::start(&[]).await?;
        let stack = Stack::start(&servers.work_dir, &servers.addresses(), "", &[]).await?;
        Ok::<_, anyhow::Error>((servers, stack))
    };
    let (servers, stack) = tokio::select! {
        started = starting => started?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
    };
    loop {
        let changed = servers.work_dir.changed().notified();
        write_endpoints(folder, &servers, &stack)?;
        tokio::select! {
            () = changed => {}
            _ = terminate.recv() => break,
        }
    }
    let _ = fs::remove_file(folder.join(ENDPOINTS));
    stack.stop().await;
    servers.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Replaces the endpoints file atomically. Only the user may read it: it contains passwords.
fn write_endpoints(folder: &Path, servers: &Servers, stack: &Stack) -> Result<()> {
    let pid = |process: &Process| process.pid().map(|pid| pid.to_string()).unwrap_or_default();
    let mut lines = stack.endpoints();
    lines.push(("KAFKA_PID", pid(&servers.kafka.process)));
    lines.push(("POSTGRES_PID", pid(&servers.postgres.process)));
    lines.push(("LOGS", servers.work_dir.logs().display().to_string()));
    let text: String = lines
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    let new = folder.join("endpoints.env.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(new, folder.join(ENDPOINTS))?;
    Ok(())
}

/// Returns the process id of a running supervisor. Checks the command line because the id may have been reused.
fn running_supervisor(folder: &Path) -> Option<Pid> {
    let pid = fs::read_to_string(folder.join(PID))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let pid = Pid::from_raw(pid)?;
    let is_ours = command.contains("supervise") || !Path::new("/proc/self").exists();
    (is_ours && test_kill_process(pid).is_ok()).then_some(pid)
}

fn introduction(folder: &Path) -> Result<String> {
    let endpoints = folder.join(ENDPOINTS);
    let text = fs::read_to_string(&endpoints)?;
    let value = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().to_owned()
    };
    let (users, orders) = (value("USER_SERVICE_ADDR"), value("ORDER_SERVICE_ADDR"));
    let (relay, kafka) = (value("RELAY_ADMIN_ADDR"), value("KAFKA_BROKERS"));
    let endpoints = endpoints.display();
    Ok(format!(
        "
  user-service   {users}
  order-service  {orders}
  outbox-relay   http://{relay}/
  Kafka          {kafka}

All addresses, process ids and the log directory are in {endpoints}. A process that you kill is
restarted with a new id.

  . {endpoints}
  grpcurl -plaintext -d '{{\"email\":\"grace@example.com\",\"name\":\"Grace\"}}' $USER_SERVICE_ADDR user.v1.UserService/CreateUser

`make down` stops the system.
"
    ))
}
