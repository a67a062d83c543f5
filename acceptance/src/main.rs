//! `acceptance`: what the relay has to withstand, with an account of every event.
//!
//! - `endurance` is a steady load for long, with kills or a transaction that stays open.
//! - `migration` goes from Debezium to the relay, under load.
//!
//! Each fails if an event is lost, altered, too many or out of order.

mod endurance;
mod migration;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Loads the relay, and accounts for every event.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The relay under a steady load, for long: kills, a held transaction, an account of every event
    Endurance(endurance::EnduranceOptions),
    /// From Debezium to the relay, under load: the documented steps, what they cost, an account of every event
    Migrate(migration::MigrationOptions),
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
    let running = async {
        match command {
            Command::Endurance(options) => endurance::run(&options).await,
            Command::Migrate(options) => migration::run(&options).await,
        }
    };
    tokio::select! {
        result = running => cli::report(result.map(|()| ExitCode::SUCCESS)),
        // The guard of the servers' folder clears everything away.
        () = stop.cancelled() => ExitCode::from(INTERRUPTED),
    }
}
