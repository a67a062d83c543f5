//! `make demo`: the main job, narrated. Every step is checked; the exit code tells.

mod narrator;
mod scenario;

use std::process::ExitCode;

use clap::Parser;
use demo::System;
use tokio_util::sync::CancellationToken;

/// Starts the whole system and shows what it is for.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// End after the scenario, with 0 if every step held
    #[arg(long)]
    once: bool,
}

/// What shells say of a program that a Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let stop = match cli::shutdown_signal() {
        Ok(stop) => stop,
        Err(err) => return cli::report(Err(err.into())),
    };
    cli::report(run(&cli, &stop).await)
}

async fn run(cli: &Cli, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    narrator::title("Starting a real Postgres, a real Apache Kafka, two services and the relay");
    let mut steps = narrator::Steps::default();
    let telling = async {
        let mut system = System::start().await?;
        let result = scenario::run(&mut system, &mut steps).await;
        Ok::<_, anyhow::Error>((system, result))
    };
    let (system, result) = tokio::select! {
        told = telling => told?,
        // In the middle of something: the guard of the servers' folder clears everything away.
        () = stop.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    steps.table();
    if !cli.once {
        narrator::invite(&system);
        stop.cancelled().await;
        narrator::title("Ending everything");
    }
    system.stop().await;
    result.map(|()| ExitCode::SUCCESS)
}
