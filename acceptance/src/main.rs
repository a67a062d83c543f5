//! `acceptance`: long-running tests of the relay with an audit of every event.
//!
//! - `endurance` runs a steady load, with kills or a transaction that stays open.
//! - `migration` migrates from Debezium to the relay under load.
//!
//! Each fails if an event is lost, altered, unexpected or out of order.

#![allow(missing_docs, reason = "a program, not a library")]

mod endurance;
mod migration;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Test the relay under load and audit every event
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay under a steady load, with kills or an open transaction, and audit every event
    Endurance(endurance::EnduranceOptions),
    /// Migrate from Debezium to the relay under load with the documented steps, and audit every event
    Migrate(migration::MigrationOptions),
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
    let running = async {
        match command {
            Command::Endurance(options) => endurance::run(&options).await,
            Command::Migrate(options) => migration::run(&options).await,
        }
    };
    tokio::select! {
        result = running => cli::report(result.map(|()| ExitCode::SUCCESS)),
        // Dropping the servers' folder stops the servers and deletes it.
        () = stop.cancelled() => ExitCode::from(INTERRUPTED),
    }
}
