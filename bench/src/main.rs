//! `bench`: how fast it is, beside what and at what cost, on a real Postgres and a real Kafka.
//!
//! - `session` is one measurement from the start of its servers to its report, and the place to
//!   begin reading.
//! - `drain`, `limits`, `latency` and `curves` are what is measured; `debezium` is what the relay is measured beside.
//! - `calls` measures the services from their doors; `projection` what they make of events.
//! - `report` is what was found, `tables` lays it out.
//!
//! Servers, load and the relay's process are of the crate `lab`.

mod calls;
mod curves;
mod debezium;
mod drain;
mod latency;
mod limits;
mod options;
mod projection;
mod report;
mod session;
mod tables;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures; there are no limits to be kept, the figures are for people to judge.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The relay: draining a backlog, latency, and what limits it; with --debezium beside Debezium
    Relay(options::RelayOptions),
    /// The services: ways of validation side by side, and ten times too many calls
    Calls(calls::CallsOptions),
    /// A projection: building it anew beside a plain consumer, and how late it is
    Projection(projection::ProjectionOptions),
    /// Only read an outbox; a process of its own, so that its CPU is
    #[command(hide = true)]
    Read(limits::ReadOptions),
    /// Only produce records; a process of its own, so that its CPU is
    #[command(hide = true)]
    Produce(limits::ProduceOptions),
}

/// What shells say of a program that a Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let command = cli::parse::<Cli>().command;
    let stop = match cli::shutdown_signal() {
        Ok(stop) => stop,
        Err(err) => return cli::report(Err(err.into())),
    };
    tokio::select! {
        result = run(command) => cli::report(result.map(|()| ExitCode::SUCCESS)),
        // The guard of the servers' folder clears everything away.
        () = stop.cancelled() => ExitCode::from(INTERRUPTED),
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Relay(options) => session::run(&options).await,
        Command::Calls(options) => calls::run(&options).await,
        Command::Projection(options) => projection::run(&options).await,
        Command::Read(options) => limits::read(&options).await,
        Command::Produce(options) => limits::produce(options).await,
    }
}
