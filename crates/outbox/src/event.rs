use diesel::Insertable;
use serde::Serialize;
use uuid::Uuid;

use crate::{cause::Cause, schema::outbox};

/// One event, as a row of the outbox and later a record in Kafka.
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
    /// An event about the aggregate `key`, which `version` names the state of, with `payload` as
    /// JSON: the aggregate's whole state, so that a compacted topic is a complete copy.
    ///
    /// # Errors
    /// If `payload` can't be written as JSON, as a map with keys that are no strings.
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

    /// The same event without a payload: a tombstone, which lets compaction forget the key. Enqueue
    /// it behind the event that tells of the aggregate's end.
    #[must_use]
    pub fn tombstone(&self) -> Self {
        Self {
            payload: None,
            ..self.clone()
        }
    }

    /// The same event with the one that caused it, in the headers `ce_causationid` and
    /// `ce_causationdepth`.
    #[must_use]
    pub fn caused_by(mut self, cause: Cause) -> Self {
        self.headers = Some(serde_json::json!({
            "ce_causationid": cause.event_id.to_string(),
            "ce_causationdepth": (cause.depth + 1).to_string(),
        }));
        self
    }

    /// The same event with the W3C trace context of the request that causes it.
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: Option<String>) -> Self {
        self.traceparent = traceparent;
        self
    }

    /// The event's identity in every copy that is ever made of it.
    pub fn id(&self) -> Uuid {
        self.event_id
    }
}
