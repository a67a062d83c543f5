//! `devstack`: Postgres, Kafka and the whole system on this machine.

mod background;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use devstack::Servers;
use tokio::signal::unix::{SignalKind, signal};

/// Run Postgres, Kafka and the services on this machine, without containers.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Directory for endpoints.env and the supervisor's log
    #[arg(long, default_value = ".devstack", global = true)]
    folder: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the whole system in the background; print its addresses
    ///
    /// Addresses, process ids and the log directory are written to endpoints.env in --folder.
    Up,
    /// Stop the system and delete its data
    Down,
    /// Run a command with a temporary Postgres and Kafka
    ///
    /// The command gets their addresses in DEVSTACK_POSTGRES_URL and DEVSTACK_KAFKA_BROKERS. Its exit code is returned.
    Run {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run the system in the foreground; used by `up`
    #[command(hide = true)]
    Supervise,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Up => background::up(&cli.folder).await,
        Command::Down => background::down(&cli.folder).await,
        Command::Run { command } => run(&command).await,
        Command::Supervise => background::supervise(&cli.folder).await,
    };
    match result {
        Ok(code) => code,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: &[String]) -> Result<ExitCode> {
    // Tests do not need durable commits.
    let servers = Servers::start(&["fsync=off"]).await?;
    let addresses = servers.addresses();
    let mut child = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .envs(addresses.variables())
        .spawn()
        .with_context(|| format!("failed to run {}", command[0]))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let status = tokio::select! {
        status = child.wait() => status?,
        // The command is in the same process group and receives Ctrl-C, too.
        _ = interrupt.recv() => child.wait().await?,
        _ = terminate.recv() => {
            child.kill().await?;
            child.wait().await?
        }
    };
    servers.stop().await;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
