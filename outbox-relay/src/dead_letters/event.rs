//! A parked event or a dead letter, for an operator.

use serde::Serialize;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::postgres::session::{DatabaseError, Session};

/// An event that Kafka rejected, or that is parked behind one.
#[derive(Clone, Debug, Serialize)]
pub struct StoredEvent {
    /// The topic of the event.
    pub topic: String,
    /// The key of the record.
    pub key: String,
    /// The order of the event in the outbox.
    pub seq: i64,
    /// The id of the event.
    pub event_id: Uuid,
    /// The type of the event.
    pub event_type: String,
    /// The version of its aggregate, if the outbox has one.
    pub aggregate_version: Option<i64>,
    /// The time of the row, in UTC.
    pub created_at: Option<String>,
    /// The W3C trace context.
    pub traceparent: Option<String>,
    /// Other headers, as a JSON object.
    pub headers: Option<serde_json::Value>,
    /// The value of the record. `None` for a tombstone.
    pub payload: Option<String>,
    /// True if the value is not UTF-8, and `payload` is ASCII with escapes such as `\xff` and `\\`.
    pub is_payload_escaped: bool,
    /// The reason of the rejection. `None` for an event that is parked behind a rejected one.
    pub error: Option<String>,
    /// The time since which it is parked or a dead letter, in UTC.
    pub stored_at: String,
    /// The state of a dead letter's copy in the dead-letter topic: `pending`, `sent` or `rejected`.
    pub in_topic: Option<String>,
}

/// A table of rejected events.
#[derive(Clone, Copy, Debug)]
pub(super) enum StoredIn {
    Parked,
    DeadLetters,
}

impl StoredIn {
    fn name(self) -> &'static str {
        match self {
            Self::Parked => "relay_parked",
            Self::DeadLetters => "relay_dead_letters",
        }
    }

    fn stored_at(self) -> &'static str {
        match self {
            Self::Parked => "parked_at",
            Self::DeadLetters => "dead_lettered_at",
        }
    }

    fn in_topic(self) -> &'static str {
        match self {
            Self::Parked => "null::text",
            Self::DeadLetters => "in_topic",
        }
    }
}

impl StoredEvent {
    /// Finds the events with this seq in a table.
    pub(super) async fn find(
        session: &Session,
        source: &str,
        table: StoredIn,
        seq: i64,
        event_id: Option<Uuid>,
    ) -> Result<Vec<Self>, DatabaseError> {
        let utc = |column| {
            format!("to_char({column} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        };
        let (created_at, stored_at) = (utc("created_at"), utc(table.stored_at()));
        let (in_topic, table) = (table.in_topic(), table.name());
        let sql = format!(
            "select topic, key, seq, event_id, event_type, aggregate_version, {created_at}, headers::text, payload, error,
                 traceparent, {stored_at}, {in_topic}
             from {table} where source = $1 and seq = $2 and ($3::uuid is null or event_id = $3) order by event_id"
        );
        let params: [&(dyn ToSql + Sync); 3] = [&source, &seq, &event_id];
        let rows = session.query(&sql, &params).await?;
        let event = |row: &tokio_postgres::Row| Self {
            topic: row.get(0),
            key: row.get(1),
            seq: row.get(2),
            event_id: row.get(3),
            event_type: row.get(4),
            aggregate_version: row.get(5),
            created_at: row.get(6),
            headers: row.get::<_, Option<&str>>(7).map(json),
            payload: row.get::<_, Option<&[u8]>>(8).map(text_or_escaped),
            is_payload_escaped: (row.get::<_, Option<&[u8]>>(8))
                .is_some_and(|bytes| std::str::from_utf8(bytes).is_err()),
            error: row.get(9),
            traceparent: row.get(10),
            stored_at: row.get(11),
            in_topic: row.get(12),
        };
        Ok(rows.iter().map(event).collect())
    }
}

/// Returns the text as it is if it has a number that this parser does not support.
fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn text_or_escaped(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}
