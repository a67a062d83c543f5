//! The commands about rejected events.

pub(crate) mod dead_letters;
pub(crate) mod parked;

use std::borrow::Cow;

use anyhow::bail;
use clap::Args;
use cli::{say, visible};
use outbox_relay::StoredEvent;
use serde::Serialize;
use uuid::Uuid;

#[derive(Args)]
pub(crate) struct Source {
    /// Name of the source in the configuration
    #[arg(long)]
    pub(crate) source: String,
}

#[derive(Args, Clone, Copy)]
pub(crate) struct Format {
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

impl Format {
    /// Prints items as JSON, or as text.
    fn print<T: Serialize>(
        self,
        items: &[T],
        describe: impl Fn(&T) -> String,
    ) -> anyhow::Result<()> {
        for item in items {
            match self.json {
                true => say!("{}", serde_json::to_string(item)?),
                false => say!("{}", describe(item)),
            }
        }
        Ok(())
    }
}

/// An event of `show`.
#[derive(Args)]
pub(crate) struct EventArgs {
    /// Seq of the event, as listed
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) seq: i64,
    /// Id of the event, if several events share the seq
    #[arg(long)]
    pub(crate) event_id: Option<Uuid>,
    #[command(flatten)]
    format: Format,
}

impl EventArgs {
    /// Prints the events that were found. Fails if there is none.
    fn show(&self, source: &str, what: &str, found: &[StoredEvent]) -> anyhow::Result<()> {
        if found.is_empty() {
            bail!("source {source} has no {what} with seq {}", self.seq);
        }
        self.format.print(found, describe_event)
    }
}

/// Describes all fields of an event.
fn describe_event(event: &StoredEvent) -> String {
    let version = event.aggregate_version.map(|version| version.to_string());
    let headers = event.headers.as_ref().map(ToString::to_string);
    let fields = [
        ("topic", visible(&event.topic)),
        ("key", visible(&event.key)),
        ("seq", event.seq.to_string().into()),
        ("event_id", event.event_id.to_string().into()),
        ("event_type", visible(&event.event_type)),
        ("aggregate_version", text(version.as_ref())),
        ("created_at", text(event.created_at.as_ref())),
        ("stored_at", event.stored_at.as_str().into()),
        ("in_topic", text(event.in_topic.as_ref())),
        ("error", text(event.error.as_ref())),
        ("traceparent", text(event.traceparent.as_ref())),
        ("headers", text(headers.as_ref())),
        ("payload", text(event.payload.as_ref())),
    ];
    let mut lines = String::new();
    for (name, value) in fields {
        lines += &format!("{:<19}{value}\n", format!("{name}:"));
    }
    lines
}

fn text(text: Option<&String>) -> Cow<'_, str> {
    text.map_or("-".into(), |text| visible(text))
}

/// Fails because several events share a seq.
fn bail_ambiguous(source: &str, what: &str, seq: i64, event_ids: &[Uuid]) -> anyhow::Result<()> {
    let event_ids: Vec<String> = event_ids.iter().map(Uuid::to_string).collect();
    bail!(
        "several {what} of source {source} have seq {seq}. Select one with --event-id: {}",
        event_ids.join(", ")
    )
}

/// Formats a count with its noun: `1 event`, `2 events`.
fn pluralize(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
