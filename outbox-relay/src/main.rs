//! `outbox-relay`: ships committed outbox rows from Postgres to Kafka.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use outbox_relay::{Relay, config::Config};
use program::LogOptions;

/// Ships committed outbox rows from Postgres to Kafka: every one, in order per key.
#[derive(Parser)]
#[command(version, after_help = program::EXIT_CODES)]
struct Cli {
    /// The configuration; outbox-relay/README.md has every setting
    #[arg(
        long,
        env = "OUTBOX_RELAY_CONFIG",
        default_value = "outbox-relay.toml",
        global = true
    )]
    config: PathBuf,
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ship, until SIGTERM
    Run,
    /// Ask the running relay whether all is well; ends with 0 if so, with 1 if not
    Healthcheck,
    /// Show what the running relay is doing, as JSON
    Status,
    /// Ship every row that the outbox still holds once more, after a restore from a dump
    Reset {
        /// The source, by its name in the configuration
        #[arg(long)]
        source: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = program::parse();
    cli.log.clone().install();
    program::report(run(cli).await)
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run => {
            let config = Config::load(&cli.config)?;
            let shutdown = program::shutdown_signal()?;
            Relay::bind(config).await?.run(shutdown).await?;
        }
        Command::Healthcheck => return Ok(healthcheck(&cli.config).await),
        Command::Status => {
            let admin_addr = Config::load_admin_addr(&cli.config)?;
            print!("{}", outbox_relay::ask(admin_addr, "/status").await?.1);
        }
        Command::Reset { source } => {
            let config = Config::load(&cli.config)?;
            let forgotten = outbox_relay::reset(config.source(&source)?).await?;
            let found = if forgotten {
                "forgotten"
            } else {
                "there was none"
            };
            println!("checkpoint of {source}: {found}; the relay begins with the oldest row");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn healthcheck(config: &Path) -> ExitCode {
    let asking = async {
        let admin_addr = Config::load_admin_addr(config)?;
        outbox_relay::ask(admin_addr, "/readyz").await
    };
    match asking.await {
        Ok((200, _)) => ExitCode::SUCCESS,
        Ok((_, body)) => {
            eprint!("{body}");
            ExitCode::FAILURE
        }
        Err(err) => {
            eprintln!("{err:#}");
            ExitCode::FAILURE
        }
    }
}
