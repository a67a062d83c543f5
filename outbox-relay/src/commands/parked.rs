//! `outbox-relay parked`.

use std::path::Path;

use anyhow::bail;
use clap::{Args, Subcommand};
use cli::{say, visible};
use outbox_relay::{DropOutcome, ParkedKey, ParkedKeys, config::Config};
use uuid::Uuid;

use super::{EventArgs, Format, Source, bail_ambiguous, pluralize};

#[derive(Subcommand)]
pub(crate) enum ParkedCommand {
    /// List the parked keys, oldest first
    List {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        format: Format,
    },
    /// Show a parked event with its headers and payload
    Show {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        event: EventArgs,
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

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Keys {
    /// Retry this key
    #[arg(long)]
    key: Option<String>,
    /// Retry every parked key
    #[arg(long)]
    all: bool,
}

impl ParkedCommand {
    fn source(&self) -> &str {
        let (Self::List { source, .. }
        | Self::Show { source, .. }
        | Self::Retry { source, .. }
        | Self::Drop { source, .. }) = self;
        &source.source
    }

    pub(crate) async fn run(self, config: &Path) -> anyhow::Result<()> {
        let config = Config::load(config)?;
        let source = self.source();
        let parked = ParkedKeys::connect(config.source(source)?).await?;
        match &self {
            Self::List { format, .. } => {
                let keys = parked.list().await?;
                if keys.is_empty() && !format.json {
                    say!("source {source} has no parked keys");
                }
                format.print(&keys, describe_key)
            }
            Self::Show { event, .. } => {
                let events = parked.find(event.seq, event.event_id).await?;
                event.show(source, "parked event", &events)
            }
            Self::Retry { keys, .. } => {
                let keys_to_retry = parked.retry(keys.key.as_deref()).await?;
                if let (0, Some(key)) = (keys_to_retry, &keys.key) {
                    bail!("key {key:?} of source {source} is not parked");
                }
                let keys = pluralize(keys_to_retry, "key");
                say!("{source}: retry of {keys} requested; the leader retries within a second");
                Ok(())
            }
            Self::Drop { seq, event_id, .. } => {
                let outcome = parked.drop_event(*seq, *event_id).await?;
                report_drop(source, *seq, outcome)
            }
        }
    }
}

fn describe_key(key: &ParkedKey) -> String {
    let ParkedKey {
        topic,
        key,
        rejected_seq,
        error,
        events,
        retry,
        ..
    } = key;
    let state = if *retry { ", retry requested" } else { "" };
    let (topic, key, error) = (visible(topic), visible(key), visible(error));
    let events = pluralize(u64::try_from(*events).unwrap_or(0), "event");
    format!("{topic} {key}: {events} from seq {rejected_seq}{state}: {error}")
}

fn report_drop(source: &str, seq: i64, outcome: DropOutcome) -> anyhow::Result<()> {
    match outcome {
        DropOutcome::Dropped => say!(
            "{source}: moved the event with seq {seq} to relay_dead_letters; if it was the first of its key, the leader \
             publishes the events after it"
        ),
        DropOutcome::NotRejected {
            event_id,
            behind_seq,
        } => bail!(
            "the event with seq {seq} of source {source} was not rejected, it is parked behind seq {behind_seq}. To drop it \
             nevertheless, add --event-id {event_id}"
        ),
        DropOutcome::NotFound => bail!("source {source} has no parked event with seq {seq}"),
        DropOutcome::Ambiguous(event_ids) => {
            bail_ambiguous(source, "parked events", seq, &event_ids)?;
        }
    }
    Ok(())
}
