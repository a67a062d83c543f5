use diesel::Insertable;
use serde::Serialize;
use uuid::Uuid;

use crate::{cause::Cause, schema::outbox};

/// An event: a row of the outbox, and later a record in Kafka.
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = outbox)]
pub struct Event {
    event_id: Uuid,
    topic: String,
    key: String,
    event_type: String,
    aggregate_version: i64,
    payload: Option<Vec<u8>>,
    headers: Option<serde_json::Value>,
    traceparent: Option<String>,
}

impl Event {
    /// Returns an event of the aggregate `key` with the aggregate's new `version`. `payload` should be its whole state after the
    /// change, so that a compacted topic is a complete copy.
    ///
    /// # Errors
    /// If `payload` can't be serialized to JSON, for example a map with keys that are not strings.
    pub fn new(
        topic: &str,
        key: impl ToString,
        event_type: &str,
        version: i64,
        payload: &impl Serialize,
    ) -> serde_json::Result<Self> {
        Ok(Self {
            event_id: Uuid::now_v7(),
            topic: topic.to_owned(),
            key: key.to_string(),
            event_type: event_type.to_owned(),
            aggregate_version: version,
            payload: Some(serde_json::to_vec(payload)?),
            headers: None,
            traceparent: None,
        })
    }

    /// Returns the tombstone of the event's key, after which compaction removes the key. Enqueue it after the event for the
    /// deletion of the aggregate.
    #[must_use]
    pub fn tombstone(&self) -> Self {
        Self {
            payload: None,
            ..self.clone()
        }
    }

    /// Sets the event that caused this one, in the headers `ce_causationid` and `ce_causationdepth`.
    #[must_use]
    pub fn caused_by(mut self, cause: Cause) -> Self {
        self.headers = Some(serde_json::json!({
            "ce_causationid": cause.event_id.to_string(),
            "ce_causationdepth": (cause.depth + 1).to_string(),
        }));
        self
    }

    /// Sets the W3C trace context of the request that caused the event.
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: Option<String>) -> Self {
        self.traceparent = traceparent;
        self
    }

    /// Returns the event's id, the same in each copy of it.
    pub fn id(&self) -> Uuid {
        self.event_id
    }
}
