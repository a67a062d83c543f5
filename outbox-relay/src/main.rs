//! `outbox-relay`: publishes committed outbox rows from Postgres to Kafka.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand};
use cli::{LogOptions, print_error, say, visible};
use outbox_relay::{Dropped, Finding, Level, ParkedKey, Relay, ResetTo, config::Config};
use uuid::Uuid;

/// Publishes committed outbox rows from Postgres to Kafka: every one, in order per key.
#[derive(Parser)]
#[command(version, after_help = cli::EXIT_CODES)]
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
    /// Publish, until SIGTERM
    Run,
    /// Ask the running relay whether all is well; ends with 0 if so, with 1 if not
    Healthcheck,
    /// Show what the running relay is doing
    Status {
        /// As JSON, also at a terminal; without one it is JSON anyway
        #[arg(long)]
        json: bool,
    },
    /// Look at everything that the configuration names, and say what is fine (PASS), what is not (FAIL) and what
    /// could not be looked at (UNKNOWN), with what to do about it; changes nothing, ends with 64 if something fails
    /// and with 0 otherwise
    Check {
        /// As JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Show and free the keys that wait because Kafka rejected an event of theirs
    Parked {
        #[command(subcommand)]
        command: ParkedCommand,
    },
    /// Publish rows that the outbox still holds once more: all of them, as after a restore from a dump, or
    /// those from a seq or a time on
    Reset {
        #[command(flatten)]
        source: Source,
        /// From the row with this seq on
        #[arg(long, conflicts_with = "to_time", allow_negative_numbers = true)]
        to_seq: Option<i64>,
        /// From the first row of this time on, like 2026-01-31T12:00:00Z
        #[arg(long)]
        to_time: Option<DateTime<Utc>>,
    },
}

#[derive(Args)]
struct Source {
    /// The source, by its name in the configuration
    #[arg(long)]
    source: String,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Keys {
    /// This key only
    #[arg(long)]
    key: Option<String>,
    /// Every key
    #[arg(long)]
    all: bool,
}

#[derive(Subcommand)]
enum ParkedCommand {
    /// Show the parked keys, the oldest first
    List {
        #[command(flatten)]
        source: Source,
        /// As JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Try again, within a second: what was rejected, and what waits behind it
    Retry {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        keys: Keys,
    },
    /// Move the rejected event of a key to relay_dead_letters; those behind it are published
    Drop {
        #[command(flatten)]
        source: Source,
        /// The event, by its seq in the list
        #[arg(long, allow_negative_numbers = true)]
        seq: i64,
        /// Its id, where several events share the seq, or where it only waits behind the rejected one
        #[arg(long)]
        event_id: Option<Uuid>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = cli::parse();
    cli.log.clone().install();
    cli::report(run(cli).await)
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run => {
            let config = Config::load(&cli.config)?;
            let shutdown = cli::shutdown_signal()?;
            Relay::bind(config).await?.run(shutdown).await?;
        }
        Command::Healthcheck => return Ok(healthcheck(&cli.config).await),
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
        Command::Parked { command } => parked(&cli.config, command).await?,
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
                "{source}: the relay publishes everything behind seq {seq} that the outbox still holds"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// For people.
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
        "\n{} passed, {} failed, {} could not be looked at",
        count(Level::Pass),
        count(Level::Fail),
        count(Level::Unknown)
    );
    Ok(())
}

async fn parked(config: &Path, command: ParkedCommand) -> anyhow::Result<()> {
    let (ParkedCommand::List { source, .. }
    | ParkedCommand::Retry { source, .. }
    | ParkedCommand::Drop { source, .. }) = &command;
    let (config, source) = (Config::load(config)?, &source.source);
    let parked = outbox_relay::Parked::of(config.source(source)?).await?;
    match &command {
        ParkedCommand::List { json: true, .. } => {
            for key in parked.list().await? {
                say!("{}", serde_json::to_string(&key)?);
            }
        }
        ParkedCommand::List { json: false, .. } => {
            let keys = parked.list().await?;
            if keys.is_empty() {
                say!("no key of {source} is parked");
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
                let state = if retry { ", to be tried again" } else { "" };
                let (topic, key, error) = (visible(&topic), visible(&key), visible(&error));
                let events = counted(events, "event");
                say!("{topic} {key}: {events} from seq {rejected_seq}{state}; {error}");
            }
        }
        ParkedCommand::Retry {
            keys: Keys { key, .. },
            ..
        } => {
            let keys = parked.retry(key.as_deref()).await?;
            if let (0, Some(key)) = (keys, key) {
                anyhow::bail!("no key {key:?} of {source} is parked");
            }
            let keys = counted(i64::try_from(keys)?, "key");
            say!("{source}: {keys} to be tried again by the relay that leads, within a second");
        }
        ParkedCommand::Drop { seq, event_id, .. } => {
            match parked.drop_event(*seq, *event_id).await? {
                Dropped::One => say!(
                    "seq {seq} of {source} is in relay_dead_letters now; if it was its key's first, those behind it \
                     are published"
                ),
                Dropped::Waits {
                    event_id,
                    behind_seq,
                } => anyhow::bail!(
                    "seq {seq} of {source} was not rejected, but waits behind seq {behind_seq}; to drop it all the same, add \
                     --event-id {event_id}"
                ),
                Dropped::None => anyhow::bail!("no event of {source} with seq {seq} is parked"),
                Dropped::Ambiguous(event_ids) => {
                    let event_ids: Vec<String> = event_ids.iter().map(Uuid::to_string).collect();
                    anyhow::bail!(
                        "several parked events of {source} have seq {seq}; name one with --event-id: {}",
                        event_ids.join(", ")
                    );
                }
            }
        }
    }
    Ok(())
}

/// `1 event`, `2 events`.
fn counted(count: i64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

async fn healthcheck(config: &Path) -> ExitCode {
    let asking = async {
        let admin_addr = Config::load_admin_addr(config)?;
        outbox_relay::ask(admin_addr, "/readyz").await
    };
    match asking.await {
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
