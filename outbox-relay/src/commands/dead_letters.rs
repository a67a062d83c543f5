//! `outbox-relay dead-letters`.

use std::{path::Path, time::Duration};

use anyhow::bail;
use clap::{Args, Subcommand};
use cli::{say, visible};
use outbox_relay::{DeadLetter, DeadLetters, Retried, Selection, config::Config};
use uuid::Uuid;

use super::{EventArgs, Format, Source, bail_ambiguous, pluralize};

#[derive(Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List dead letters in the order of the outbox
    List {
        #[command(flatten)]
        source: Source,
        /// List only those of this topic
        #[arg(long)]
        topic: Option<String>,
        /// List only those of this key
        #[arg(long)]
        key: Option<String>,
        /// List at most this many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
        #[command(flatten)]
        format: Format,
    },
    /// Show a dead letter with its headers and payload
    Show {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        event: EventArgs,
    },
    /// Park dead letters and retry them in the order of the outbox
    ///
    /// The leader retries within ten seconds, and later events of their keys wait from then on. An event that is rejected again
    /// stays parked. At most 1,000 events are parked at a time. A dead letter is published after later events of its key that
    /// were published already: retry it only if its version is the newest of its key, or consumers compare versions.
    Retry {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        selectors: Selectors,
    },
    /// Delete dead letters; their events are never published
    Drop {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        selectors: Selectors,
    },
}

/// At least one is required, so that nothing is selected by mistake. Several narrow the selection.
#[derive(Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Selectors {
    /// Select this seq, as listed
    #[arg(long, allow_negative_numbers = true)]
    seq: Option<i64>,
    /// Select this event id
    #[arg(long)]
    event_id: Option<Uuid>,
    /// Select this topic; several selectors narrow the selection
    #[arg(long)]
    topic: Option<String>,
    /// Select this key
    #[arg(long)]
    key: Option<String>,
    /// Select those that were dead-lettered more than this many days ago
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    older_than_days: Option<u32>,
    /// Select every dead letter
    #[arg(long, conflicts_with_all = ["seq", "event_id", "topic", "key", "older_than_days"])]
    all: bool,
}

impl Selectors {
    fn selection(&self) -> Selection {
        let days = |days| Duration::from_hours(24 * u64::from(days));
        Selection {
            topic: self.topic.clone(),
            key: self.key.clone(),
            seq: self.seq,
            event_id: self.event_id,
            older_than: self.older_than_days.map(days),
        }
    }
}

impl DeadLettersCommand {
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
        let dead_letters = DeadLetters::connect(config.source(source)?).await?;
        match &self {
            Self::List {
                topic,
                key,
                limit,
                format,
                ..
            } => {
                let selection = Selection {
                    topic: topic.clone(),
                    key: key.clone(),
                    ..Selection::default()
                };
                // One more, to know whether there are more.
                let mut found = dead_letters
                    .list(&selection, limit.saturating_add(1))
                    .await?;
                let has_more = found.len() > usize::try_from(*limit)?;
                found.truncate(usize::try_from(*limit)?);
                format.print(&found, describe_dead_letter)?;
                if found.is_empty() && !format.json {
                    say!("source {source} has no such dead letters");
                } else if has_more && !format.json {
                    say!("there are more; raise --limit");
                }
                Ok(())
            }
            Self::Show { event, .. } => {
                let events = dead_letters.find(event.seq, event.event_id).await?;
                event.show(source, "dead letter", &events)
            }
            Self::Retry { selectors, .. } => {
                ensure_unambiguous(&dead_letters, source, selectors).await?;
                let Retried { moved, remaining } =
                    dead_letters.retry(&selectors.selection()).await?;
                ensure_found(source, selectors, moved + remaining)?;
                report_retry(source, moved, remaining)
            }
            Self::Drop { selectors, .. } => {
                ensure_unambiguous(&dead_letters, source, selectors).await?;
                let deleted = dead_letters.delete(&selectors.selection()).await?;
                ensure_found(source, selectors, deleted)?;
                say!("{source}: deleted {}", pluralize(deleted, "dead letter"));
                Ok(())
            }
        }
    }
}

/// Fails if a seq alone selects several events.
async fn ensure_unambiguous(
    dead_letters: &DeadLetters,
    source: &str,
    selectors: &Selectors,
) -> anyhow::Result<()> {
    let (Some(seq), None) = (selectors.seq, selectors.event_id) else {
        return Ok(());
    };
    let found = dead_letters.list(&selectors.selection(), 10).await?;
    if found.len() > 1 {
        let event_ids: Vec<Uuid> = found.iter().map(|found| found.event_id).collect();
        bail_ambiguous(source, "dead letters", seq, &event_ids)?;
    }
    Ok(())
}

/// Fails if one event or key was selected and there is none. Otherwise a selection may be empty.
fn ensure_found(source: &str, selectors: &Selectors, found: u64) -> anyhow::Result<()> {
    let names_one =
        selectors.seq.is_some() || selectors.event_id.is_some() || selectors.key.is_some();
    if found == 0 && names_one {
        bail!("source {source} has no dead letter that matches all selectors");
    }
    Ok(())
}

fn report_retry(source: &str, moved: u64, remaining: u64) -> anyhow::Result<()> {
    match (moved, remaining) {
        (0, 0) => say!("source {source} has no such dead letters"),
        (0, _) => {}
        _ => say!(
            "{source}: parked {}; the leader retries within ten seconds. `outbox-relay parked list` shows those that are \
             rejected again",
            pluralize(moved, "dead letter")
        ),
    }
    if remaining > 0 {
        say!(
            "{source}: {} not retried, because 1,000 events are parked, or a key or topic is too long. Repeat the command when \
             fewer are parked",
            pluralize(remaining, "dead letter")
        );
    }
    Ok(())
}

fn describe_dead_letter(dead_letter: &DeadLetter) -> String {
    let DeadLetter {
        topic,
        key,
        seq,
        aggregate_version,
        dead_lettered_at,
        error,
        ..
    } = dead_letter;
    let version =
        aggregate_version.map_or_else(String::new, |version| format!(", version {version}"));
    let (topic, key, error) = (visible(topic), visible(key), visible(error));
    format!("{topic} {key}: seq {seq}{version}, dead-lettered at {dead_lettered_at}: {error}")
}
