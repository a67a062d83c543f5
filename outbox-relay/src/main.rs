//! `outbox-relay`: publishes committed outbox rows from Postgres to Kafka.

use std::{
    io::IsTerminal as _,
    num::NonZero,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand};
use cli::{LogOptions, print_error, say, visible};
use outbox_relay::{
    DropOutcome, Finding, Level, ParkedKey, ParkedKeys, Relay, ResetTo, config::Config,
};
use tokio::runtime::Runtime;
use uuid::Uuid;

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
    /// List, retry or drop parked events, which are held back because Kafka rejected an event of their key
    Parked {
        #[command(subcommand)]
        command: ParkedCommand,
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

#[derive(Args)]
struct Source {
    /// Name of the source in the configuration
    #[arg(long)]
    source: String,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Keys {
    /// Retry this key
    #[arg(long)]
    key: Option<String>,
    /// Retry every parked key
    #[arg(long)]
    all: bool,
}

#[derive(Subcommand)]
enum ParkedCommand {
    /// List the parked keys, oldest first
    List {
        #[command(flatten)]
        source: Source,
        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
    /// Retry the rejected event of a key and the events behind it; the leader does so within a second
    Retry {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        keys: Keys,
    },
    /// Move the rejected event of a key to relay_dead_letters; the leader publishes the events after it
    Drop {
        #[command(flatten)]
        source: Source,
        /// Seq of the event, as listed
        #[arg(long, allow_negative_numbers = true)]
        seq: i64,
        /// Id of the event; required if several events share the seq, or if it is not the rejected one of its key
        #[arg(long)]
        event_id: Option<Uuid>,
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
        Command::Parked { command } => run_parked(&cli.config, command).await?,
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

async fn run_parked(config: &Path, command: ParkedCommand) -> anyhow::Result<()> {
    let (ParkedCommand::List { source, .. }
    | ParkedCommand::Retry { source, .. }
    | ParkedCommand::Drop { source, .. }) = &command;
    let (config, source) = (Config::load(config)?, &source.source);
    let parked = ParkedKeys::connect(config.source(source)?).await?;
    match &command {
        ParkedCommand::List { json: true, .. } => {
            for key in parked.list().await? {
                say!("{}", serde_json::to_string(&key)?);
            }
        }
        ParkedCommand::List { json: false, .. } => {
            let keys = parked.list().await?;
            if keys.is_empty() {
                say!("source {source} has no parked keys");
            }
            for key in keys {
                let ParkedKey {
                    topic,
                    key,
                    rejected_seq,
                    error,
                    events,
                    retry,
                    ..
                } = key;
                let state = if retry { ", retry requested" } else { "" };
                let (topic, key, error) = (visible(&topic), visible(&key), visible(&error));
                let events = pluralize(events, "event");
                say!("{topic} {key}: {events} from seq {rejected_seq}{state}: {error}");
            }
        }
        ParkedCommand::Retry {
            keys: Keys { key, .. },
            ..
        } => {
            let keys = parked.retry(key.as_deref()).await?;
            if let (0, Some(key)) = (keys, key) {
                anyhow::bail!("key {key:?} of source {source} is not parked");
            }
            let keys = pluralize(i64::try_from(keys)?, "key");
            say!("{source}: retry of {keys} requested; the leader retries within a second");
        }
        ParkedCommand::Drop { seq, event_id, .. } => {
            match parked.drop_event(*seq, *event_id).await? {
                DropOutcome::Dropped => say!(
                    "{source}: moved the event with seq {seq} to relay_dead_letters; if it was the first of its key, the \
                     leader publishes the events after it"
                ),
                DropOutcome::NotRejected {
                    event_id,
                    behind_seq,
                } => anyhow::bail!(
                    "the event with seq {seq} of source {source} was not rejected, it is parked behind seq {behind_seq}. To drop \
                     it nevertheless, add --event-id {event_id}"
                ),
                DropOutcome::NotFound => {
                    anyhow::bail!("source {source} has no parked event with seq {seq}")
                }
                DropOutcome::Ambiguous(event_ids) => {
                    let event_ids: Vec<String> = event_ids.iter().map(Uuid::to_string).collect();
                    anyhow::bail!(
                        "several parked events of source {source} have seq {seq}. Select one with --event-id: {}",
                        event_ids.join(", ")
                    );
                }
            }
        }
    }
    Ok(())
}

/// Formats a count with its noun: `1 event`, `2 events`.
fn pluralize(count: i64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
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
