//! `outbox-relay`: publishes committed outbox rows from Postgres to Kafka.

mod commands;

use std::{
    io::IsTerminal as _,
    num::NonZero,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::{Parser, Subcommand};
use cli::{LogOptions, print_error, say};
use outbox_relay::{Finding, Level, Relay, ResetTo, config::Config};
use tokio::runtime::Runtime;

use self::commands::{Source, dead_letters::DeadLettersCommand, parked::ParkedCommand};

/// Publishes committed outbox rows from Postgres to Kafka, at least once and in order per key
#[derive(Parser)]
#[command(version, after_help = cli::EXIT_CODES)]
struct Cli {
    /// Path of the configuration file; docs/relay/configuration.md describes every setting
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
    /// Publish until SIGTERM or SIGINT, then drain within a few seconds
    Run,
    /// Check that the running relay is ready; exit with 0 if it is and with 1 otherwise
    Healthcheck,
    /// Show the status of the running relay: a table on a terminal, JSON otherwise
    Status {
        /// Print JSON on a terminal, too
        #[arg(long)]
        json: bool,
    },
    /// Check everything that the configuration names without changing anything; exit with 64 if a check fails
    ///
    /// Prints a line per check with its result and a hint: PASS, NOTE (acceptable), UNKNOWN (could not be checked) or
    /// FAIL. Exits with 64 if there is a FAIL and with 0 otherwise.
    Check {
        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
    /// List, show, retry or drop parked events, which are held back because Kafka rejected an event of their key
    Parked {
        #[command(subcommand)]
        command: ParkedCommand,
    },
    /// List, show, retry or delete dead letters, which Kafka rejected while later events of their keys were published
    DeadLetters {
        #[command(subcommand)]
        command: DeadLettersCommand,
    },
    /// Move the checkpoint back, so that the next leader publishes rows of the outbox again
    ///
    /// Without an option all rows are published again, as needed after a restore from a dump. Fails while a relay leads
    /// the source.
    Reset {
        #[command(flatten)]
        source: Source,
        /// Publish from the row with this seq on
        #[arg(long, conflicts_with = "to_time", allow_negative_numbers = true)]
        to_seq: Option<i64>,
        /// Publish from the first row created at or after this time, such as 2026-01-31T12:00:00Z
        #[arg(long)]
        to_time: Option<DateTime<Utc>>,
    },
}

fn main() -> ExitCode {
    let cli: Cli = cli::parse();
    cli.log.clone().install();
    cli::report(runtime(&cli).and_then(|runtime| runtime.block_on(run(cli))))
}

/// Returns a runtime with one thread for each source, but not more than there are cores. A source uses less than one core. With
/// more threads, its tasks would move between them, which costs a tenth of its CPU.
fn runtime(cli: &Cli) -> anyhow::Result<Runtime> {
    let sources = match cli.command {
        Command::Run => Config::load(&cli.config)?.sources.len(),
        _ => 1,
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(sources.clamp(1, cores))
        .enable_all()
        .build();
    runtime.context("failed to start the runtime")
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run => {
            let config = Config::load(&cli.config)?;
            let shutdown = cli::shutdown_signal()?;
            Relay::bind(config).await?.run(shutdown).await?;
        }
        Command::Healthcheck => return Ok(run_healthcheck(&cli.config).await),
        Command::Status { json } => {
            let admin_addr = Config::load_admin_addr(&cli.config)?;
            let (_, status) = outbox_relay::ask(admin_addr, "/status").await?;
            if json || !std::io::stdout().is_terminal() {
                say!("{}", status.trim_end());
            } else {
                say!("{}", outbox_relay::status_table(&status)?.trim_end());
            }
        }
        Command::Check { json } => {
            let found = outbox_relay::check(&Config::load(&cli.config)?).await;
            if json {
                for finding in &found {
                    say!("{}", serde_json::to_string(finding)?);
                }
            } else {
                print_findings(&found)?;
            }
            if found.iter().any(|finding| finding.level == Level::Fail) {
                return Ok(ExitCode::from(cli::BAD_CONFIGURATION));
            }
        }
        Command::Parked { command } => command.run(&cli.config).await?,
        Command::DeadLetters { command } => command.run(&cli.config).await?,
        Command::Reset {
            source: Source { source },
            to_seq,
            to_time,
        } => {
            let to = match (to_seq, to_time) {
                (Some(seq), _) => ResetTo::Seq(seq),
                // Microseconds of these years fit exactly.
                #[expect(clippy::cast_precision_loss)]
                (_, Some(time)) => ResetTo::UnixSeconds(time.timestamp_micros() as f64 / 1e6),
                (None, None) => ResetTo::Beginning,
            };
            let config = Config::load(&cli.config)?;
            let seq = outbox_relay::reset(config.source(&source)?, to).await?;
            say!(
                "{source}: checkpoint reset; the next leader publishes every row of the outbox with a seq above {seq}"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_findings(found: &[Finding]) -> anyhow::Result<()> {
    for finding in found {
        say!("{finding}");
    }
    let count = |level| {
        found
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    say!(
        "\n{} passed, {} failed, {} unknown",
        count(Level::Pass),
        count(Level::Fail),
        count(Level::Unknown)
    );
    Ok(())
}

async fn run_healthcheck(config: &Path) -> ExitCode {
    let request = async {
        let admin_addr = Config::load_admin_addr(config)?;
        outbox_relay::ask(admin_addr, "/readyz").await
    };
    match request.await {
        Ok((200, _)) => ExitCode::SUCCESS,
        Ok((_, body)) => {
            print_error(format_args!("{}", body.trim_end()));
            ExitCode::FAILURE
        }
        Err(err) => {
            print_error(format_args!("{err:#}"));
            ExitCode::FAILURE
        }
    }
}
