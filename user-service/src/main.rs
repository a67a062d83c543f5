//! `user-service`: owns the users.

use std::process::ExitCode;

use anyhow::{Error, anyhow};
use clap::{Parser, Subcommand};
use program::{LogOptions, Problems};
use service_kit::{
    HealthcheckOptions,
    database::{self, DatabaseOptions},
};
use user_service::{
    MIGRATIONS, UserService,
    commands::{DlqOptions, ProjectionOptions},
    config::ServeOptions,
};

/// Owns the users: gRPC, a database of its own, and an outbox that tells others.
#[derive(Parser)]
#[command(version, after_help = program::EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve gRPC and follow the orders, until SIGTERM
    Serve(Box<ServeOptions>),
    /// Bring the schema of the database up to date
    Migrate(DatabaseOptions),
    /// Look after records that could not be applied
    Dlq(DlqOptions),
    /// Look after the tables that are made from the other service's events
    Projection(ProjectionOptions),
    /// Ask a running server for its health; ends with 0 if it serves, with 1 if not
    Healthcheck(HealthcheckOptions),
}

#[tokio::main]
async fn main() -> ExitCode {
    program::report(run(program::parse()).await)
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut problems = Problems::default();
    let log = cli.log.check(&mut problems);
    match cli.command {
        Command::Serve(options) => {
            let config = options.check(&mut problems);
            let (log, config) = problems.into_result(log.zip(config))?;
            log.install();
            let shutdown = program::shutdown_signal()?;
            let service = UserService::bind(config).await?;
            service.run(shutdown).await.map_err(Error::from_boxed)?;
        }
        Command::Migrate(options) => {
            let url = options.check(&mut problems);
            let (log, url) = problems.into_result(log.zip(url))?;
            log.install();
            let names = database::migrate(&url, &MIGRATIONS)
                .await
                .map_err(|err| anyhow!("can't migrate: {err}"))?;
            println!("{} migrations run", names.len());
        }
        Command::Dlq(options) => {
            let dlq = options.check(&mut problems);
            let (log, dlq) = problems.into_result(log.zip(dlq))?;
            log.install();
            return dlq.run().await;
        }
        Command::Projection(options) => {
            let command = options.check(&mut problems);
            let (log, command) = problems.into_result(log.zip(command))?;
            log.install();
            command.run().await?;
        }
        Command::Healthcheck(options) => {
            problems.into_result(log)?.install();
            return Ok(options.run().await);
        }
    }
    Ok(ExitCode::SUCCESS)
}
