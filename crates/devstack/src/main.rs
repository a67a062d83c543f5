//! `devstack`: a real Postgres and a real Kafka on this machine, and the system on top of them.

mod background;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use devstack::Servers;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the system on this machine, without containers.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where the addresses are written
    #[arg(long, default_value = ".devstack", global = true)]
    folder: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the whole system in the background; its addresses are in .devstack/endpoints.env
    Up,
    /// End it, and clear everything away
    Down,
    /// Run a command with a Postgres and a Kafka, of which the variables DEVSTACK_POSTGRES_URL and
    /// DEVSTACK_KAFKA_BROKERS tell it
    Run {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// What runs in the background
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
    // What a test commits need not survive a power cut.
    let servers = Servers::start(&["fsync=off"]).await?;
    let addresses = servers.addresses();
    let mut child = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .envs(addresses.variables())
        .spawn()
        .with_context(|| format!("can't run {}", command[0]))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let status = tokio::select! {
        status = child.wait() => status?,
        // The command is in the foreground too, and hears a Ctrl-C itself.
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
