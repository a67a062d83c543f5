use std::{io, net::SocketAddr, process::ExitCode};

use anyhow::{Error, anyhow};
use clap::{Args, Parser, Subcommand};
use cli::LogOptions;
use diesel_migrations::EmbeddedMigrations;
use projection::{Configurable, DeadLettersOptions, ProjectionOptions, Rebuildable};
use tokio_util::sync::CancellationToken;

use crate::{
    HealthcheckOptions,
    database::{DatabaseOptions, connect_once, migrate, reject_transaction_pooler},
};

/// A service that [`run`] can start.
pub trait Application: Sized {
    /// The program's name.
    const NAME: &'static str;
    /// The first line of `--help`.
    const ABOUT: &'static str;
    /// The options of `serve`.
    type Options: Args;
    /// The projection of the other service's events.
    type Projection: Configurable + Rebuildable;

    /// The migrations of the database, in the order in which they run; the service's own are last.
    fn migrations() -> &'static [EmbeddedMigrations];

    /// Binds the listen address.
    ///
    /// # Errors
    /// If the address can't be bound.
    fn bind(options: Self::Options) -> impl Future<Output = io::Result<Self>> + Send;

    /// Returns the address of the database.
    fn database(&self) -> &DatabaseOptions;

    /// Returns the bound address.
    fn local_addr(&self) -> SocketAddr;

    /// Serves gRPC and runs the projection until `shutdown`.
    ///
    /// # Errors
    /// If the listener fails. An unavailable database or Kafka is not an error: health reports it, and
    /// calls are rejected with a retry delay.
    fn run(
        self,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;
}

#[derive(Parser)]
#[command(name = A::NAME, about = A::ABOUT, version, after_help = cli::EXIT_CODES)]
struct Cli<A: Application> {
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Command<A>,
}

#[derive(Subcommand)]
enum Command<A: Application> {
    /// Serve gRPC and consume the other service's events until SIGTERM
    Serve(Box<A::Options>),
    /// Run pending database migrations
    Migrate(DatabaseOptions),
    /// List, redrive or drop records that could not be applied
    DeadLetters {
        #[command(flatten)]
        database: DatabaseOptions,
        #[command(flatten)]
        options: DeadLettersOptions<A::Projection>,
    },
    /// Inspect or rebuild the tables built from the other service's events
    Projection {
        #[command(flatten)]
        database: DatabaseOptions,
        #[command(flatten)]
        options: ProjectionOptions<A::Projection>,
    },
    /// Query the health of a running server; exits with 0 if it is SERVING, otherwise with 1
    Healthcheck(HealthcheckOptions),
}

/// Parses the command line, runs its subcommand, and returns the exit code.
pub async fn run<A: Application>() -> ExitCode {
    let Cli { log, command } = cli::parse::<Cli<A>>();
    log.install();
    cli::report(execute(command).await)
}

async fn execute<A: Application>(command: Command<A>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(options) => {
            let shutdown = cli::shutdown_signal()?;
            let service = A::bind(*options).await?;
            reject_transaction_pooler(A::NAME, service.database().url()).await?;
            service.run(shutdown).await.map_err(Error::from_boxed)?;
        }
        Command::Migrate(database) => {
            let names = migrate(A::NAME, database.url(), A::migrations())
                .await
                .map_err(|err| anyhow!("failed to migrate the database: {err}"))?;
            println!("{} migrations applied", names.len());
        }
        Command::DeadLetters { database, options } => {
            let mut conn = connect_once(A::NAME, database.url()).await?;
            return options.run(&mut conn).await;
        }
        Command::Projection { database, options } => {
            let mut conn = connect_once(A::NAME, database.url()).await?;
            let mut follower = connect_once(A::NAME, database.url()).await?;
            options.run(&mut conn, &mut follower).await?;
        }
        Command::Healthcheck(options) => return Ok(options.run().await),
    }
    Ok(ExitCode::SUCCESS)
}
