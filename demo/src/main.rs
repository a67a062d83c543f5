//! `make demo`: runs the demo scenario with narration. The exit code is 0 only if every step passes.

mod narrator;
mod scenario;

use std::process::ExitCode;

use clap::Parser;
use demo::System;
use tokio_util::sync::CancellationToken;

/// Start the whole system and run a scenario that shows what it guarantees
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Stop after the scenario; the exit code is 0 if every step passed
    #[arg(long)]
    once: bool,
}

/// The exit code of a program that was interrupted with Ctrl-C.
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
    narrator::title("Starting Postgres, Apache Kafka, both services and the relay");
    let mut steps = narrator::Steps::default();
    let running = async {
        let mut system = System::start().await?;
        let result = scenario::run(&mut system, &mut steps).await;
        Ok::<_, anyhow::Error>((system, result))
    };
    let (system, result) = tokio::select! {
        finished = running => finished?,
        // Interrupted: dropping the servers' folder stops the servers and deletes it.
        () = stop.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    steps.print_table();
    if !cli.once {
        narrator::print_addresses(&system);
        stop.cancelled().await;
        narrator::title("Stopping everything");
    }
    system.stop().await;
    result.map(|()| ExitCode::SUCCESS)
}
