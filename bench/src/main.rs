//! `bench`: measures throughput, latency and resource use on a real Postgres and a real Kafka.
//!
//! - `session` runs one measurement of the relay from server start to report. Start reading there.
//! - `drain`, `limits`, `latency` and `curves` are its parts; `debezium` is the comparison, `postgres_use` what Postgres does.
//! - `calls` measures the gRPC services, `projection` a projection.
//! - `report` holds the figures, `tables` formats them.
//!
//! The crate `lab` provides the servers, the load and the relay's process.

#![allow(missing_docs, reason = "a program, not a library")]

mod calls;
mod curves;
mod debezium;
mod drain;
mod latency;
mod limits;
mod options;
mod postgres_use;
mod projection;
mod report;
mod session;
mod tables;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measure throughput, latency and resource use; no figure has a limit that makes this fail
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the relay: drain of a backlog, latency and upper bounds; with --debezium also Debezium
    Relay(options::RelayOptions),
    /// Measure the services: calls per second compared with pgbench, validation modes, overload
    Calls(calls::CallsOptions),
    /// Measure a projection: rebuild compared with a plain consumer, and lag
    Projection(projection::ProjectionOptions),
    /// Only read an outbox; a separate process, so that its CPU is measured alone
    #[command(hide = true)]
    Read(limits::ReadOptions),
    /// Only produce records; a separate process, so that its CPU is measured alone
    #[command(hide = true)]
    Produce(limits::ProduceOptions),
}

/// The exit code of a program that was interrupted with Ctrl-C.
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
        // Dropping the servers' folder stops the servers and deletes it.
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
