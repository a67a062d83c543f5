use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// What a source is doing, for people and for probes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SourceStatus {
    /// The source's name.
    pub(crate) source: String,
    /// What it does.
    pub(crate) role: Role,
    /// The number of its leadership, once it has led.
    pub(crate) epoch: Option<i64>,
    /// Records acknowledged since the program started.
    pub(crate) shipped: u64,
    /// Records sent and not yet acknowledged.
    pub(crate) in_flight: u64,
    /// Times that Kafka refused this relay's records because another one ships the source.
    pub(crate) fenced: u64,
    /// Keys that wait because Kafka refused an event of theirs.
    pub(crate) parked_keys: usize,
    /// Why it does not ship, while something keeps it from shipping.
    pub(crate) error: Option<String>,
}

/// What a source can be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Not there yet.
    Starting,
    /// Another relay leads; this one takes over when it goes.
    Standby,
    /// It ships.
    Leader,
    /// It ended as it was asked to.
    Stopped,
}

/// The status of a source, shared with those who show it.
#[derive(Clone, Debug)]
pub(crate) struct SharedStatus(Arc<Mutex<SourceStatus>>);

impl SharedStatus {
    pub(crate) fn new(source: &str) -> Self {
        Self(Arc::new(Mutex::new(SourceStatus {
            source: source.to_owned(),
            role: Role::Starting,
            epoch: None,
            shipped: 0,
            in_flight: 0,
            fenced: 0,
            parked_keys: 0,
            error: None,
        })))
    }

    /// What the source is doing now.
    pub(crate) fn get(&self) -> SourceStatus {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut SourceStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl SourceStatus {
    /// Whether all is well: it ships, or stands by for one that does.
    pub(crate) fn is_ready(&self) -> bool {
        self.error.is_none() && matches!(self.role, Role::Leader | Role::Standby)
    }
}
