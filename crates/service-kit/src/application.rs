use std::{io, net::SocketAddr, process::ExitCode};

use anyhow::{Error, anyhow};
use clap::{Args, Parser, Subcommand};
use cli::LogOptions;
use diesel_migrations::EmbeddedMigrations;
use projection::{Configurable, DeadLettersOptions, ProjectionOptions, Rebuildable};
use tokio_util::sync::CancellationToken;

use crate::{
    HealthcheckOptions,
    database::{DatabaseOptions, connect_once, migrate},
};

/// A service, as [`run`] runs it.
pub trait Application: Sized {
    /// Its name on the command line.
    const NAME: &'static str;
    /// The first line of its `--help`.
    const ABOUT: &'static str;
    /// The options of `serve`.
    type Options: Args;
    /// The projection that it follows.
    type Projection: Configurable + Rebuildable;

    /// The schema of its database, in the order in which it is built; its own part is last.
    fn migrations() -> &'static [EmbeddedMigrations];

    /// Binds the address.
    ///
    /// # Errors
    /// If the address can't be bound.
    fn bind(options: Self::Options) -> impl Future<Output = io::Result<Self>> + Send;

    /// Where it listens.
    fn local_addr(&self) -> SocketAddr;

    /// Serves gRPC and follows the projection until `shutdown`.
    ///
    /// # Errors
    /// If the listener fails. A database or a Kafka that is away is no error: health tells, and
    /// calls are rejected with a hint.
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
    /// Serve gRPC and follow the other service's events, until SIGTERM
    Serve(Box<A::Options>),
    /// Bring the schema of the database up to date
    Migrate(DatabaseOptions),
    /// Look after records that could not be applied
    DeadLetters {
        #[command(flatten)]
        database: DatabaseOptions,
        #[command(flatten)]
        options: DeadLettersOptions<A::Projection>,
    },
    /// Look after the tables that are made from the other service's events
    Projection {
        #[command(flatten)]
        database: DatabaseOptions,
        #[command(flatten)]
        options: ProjectionOptions<A::Projection>,
    },
    /// Ask a running server for its health; ends with 0 if it serves, with 1 if not
    Healthcheck(HealthcheckOptions),
}

/// Runs the subcommand that the command line names; returns the exit code.
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
            service.run(shutdown).await.map_err(Error::from_boxed)?;
        }
        Command::Migrate(database) => {
            let names = migrate(database.url(), A::migrations())
                .await
                .map_err(|err| anyhow!("can't migrate: {err}"))?;
            println!("{} migrations run", names.len());
        }
        Command::DeadLetters { database, options } => {
            let mut conn = connect_once(database.url()).await?;
            return options.run(&mut conn).await;
        }
        Command::Projection { database, options } => {
            let mut conn = connect_once(database.url()).await?;
            let mut follower = connect_once(database.url()).await?;
            options.run(&mut conn, &mut follower).await?;
        }
        Command::Healthcheck(options) => return Ok(options.run().await),
    }
    Ok(ExitCode::SUCCESS)
}
