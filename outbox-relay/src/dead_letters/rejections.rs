//! The leader's view of parked keys and dead letters.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::storage::{Delivery, EventRef, Storage};
use crate::{
    config::Mapping,
    postgres::{checkpoint::CheckpointError, leader::Election},
};

/// The most parked keys of a source. With more of them, single records are not the problem and the source halts.
pub(crate) const MAX_PARKED_KEYS: usize = 1_000;
/// The longest key that can be parked, limited by the index on parked keys.
pub(crate) const MAX_PARKED_KEY_BYTES: usize = 2_000;
/// The most dead letters stored by one statement. Its cost grows with their square, because it searches all of them for the
/// error of each.
const MAX_PENDING_DEAD_LETTERS: usize = 500;
/// The interval of checks for retries that operators have requested.
const RETRY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The parked keys of a source, cached by its leader, and the parked events and dead letters that are still to be stored.
pub(crate) struct Rejections<'a> {
    storage: Storage<'a>,
    /// The parked keys by topic.
    parked: HashMap<String, HashSet<String>>,
    /// Events behind a parked one that are not stored yet.
    behind: Vec<EventRef>,
    /// Dead letters that are not stored yet.
    pending: PendingDeadLetters,
    loaded_at: Instant,
    /// There may be something to retry, such as dead letters that are not in their topic yet.
    is_retry_pending: bool,
}

#[derive(Default)]
struct PendingDeadLetters {
    events: Vec<EventRef>,
    errors: Vec<String>,
    /// Their keys, by topic.
    keys: HashMap<String, HashSet<String>>,
}

impl<'a> Rejections<'a> {
    /// Loads the parked keys, if there are rejected events.
    pub(crate) async fn load(
        election: &'a Election,
        mapping: &'a Mapping,
    ) -> Result<Self, CheckpointError> {
        let storage = Storage::new(&election.leadership, mapping);
        let parked = match election.has_rejected_events {
            true => storage.parked_keys().await?,
            false => HashMap::new(),
        };
        Ok(Self {
            parked,
            storage,
            behind: Vec::new(),
            pending: PendingDeadLetters::default(),
            loaded_at: Instant::now(),
            is_retry_pending: election.has_rejected_events,
        })
    }

    pub(crate) fn is_parked(&self, topic: &str, key: &str) -> bool {
        contains(&self.parked, topic, key)
    }

    /// Returns true if dead letters must be stored before an event of this key is sent: an event may not pass a dead letter of
    /// its key that is not stored. Also true if there are as many as one statement may store.
    pub(crate) fn must_store_before(&self, topic: &str, key: &str) -> bool {
        self.pending.events.len() >= MAX_PENDING_DEAD_LETTERS
            || contains(&self.pending.keys, topic, key)
    }

    /// Returns the number of parked keys.
    pub(crate) fn parked_keys(&self) -> usize {
        self.parked.values().map(HashSet::len).sum()
    }

    /// Parks an event behind another one of its key. The next [`store`](Self::store) stores it.
    pub(crate) fn park_behind(&mut self, event: EventRef) {
        self.behind.push(event);
    }

    /// Stores the events parked behind others and the dead letters, with one statement each. Returns the number of dead
    /// letters.
    pub(crate) async fn store(&mut self) -> Result<u64, CheckpointError> {
        self.store_parked().await?;
        self.store_dead_letters().await
    }

    async fn store_parked(&mut self) -> Result<(), CheckpointError> {
        if self.behind.is_empty() {
            return Ok(());
        }
        self.storage.park(&self.behind, None).await?;
        self.behind.clear();
        Ok(())
    }

    /// Parks a rejected event, and its key with it.
    pub(crate) async fn park(
        &mut self,
        event: EventRef,
        topic: &str,
        key: &str,
        error: &str,
    ) -> Result<(), CheckpointError> {
        self.storage.park(&[event], Some(error)).await?;
        self.parked
            .entry(topic.to_owned())
            .or_default()
            .insert(key.to_owned());
        Ok(())
    }

    /// Stores the new error of a parked event that was rejected again.
    pub(crate) async fn park_again(
        &self,
        event: EventRef,
        error: &str,
    ) -> Result<(), CheckpointError> {
        self.storage.park_again(event, error).await
    }

    /// Adds a rejected event to the dead letters. The next [`store`](Self::store) stores it.
    pub(crate) fn add_dead_letter(
        &mut self,
        event: EventRef,
        topic: &str,
        key: &str,
        error: String,
    ) {
        self.pending.events.push(event);
        self.pending.errors.push(error);
        let keys = self.pending.keys.entry(topic.to_owned()).or_default();
        keys.insert(key.to_owned());
    }

    async fn store_dead_letters(&mut self) -> Result<u64, CheckpointError> {
        let PendingDeadLetters { events, errors, .. } = &self.pending;
        if events.is_empty() {
            return Ok(0);
        }
        let stored = self.storage.add_dead_letters(events, errors).await?;
        self.pending = PendingDeadLetters::default();
        self.is_retry_pending = true;
        Ok(stored)
    }

    /// Stores whether the dead-letter topic accepted the event.
    pub(crate) async fn record_delivery(
        &self,
        event: EventRef,
        delivery: Delivery,
    ) -> Result<(), CheckpointError> {
        self.storage.record_delivery(event, delivery).await
    }

    /// Removes parked events that were published, and the keys of which no other event is parked.
    pub(crate) async fn unpark(&mut self, events: &[EventRef]) -> Result<(), CheckpointError> {
        if events.is_empty() {
            return Ok(());
        }
        self.storage.unpark(events).await?;
        self.parked = self.storage.parked_keys().await?;
        Ok(())
    }

    /// Returns true if operators may have requested a retry since the last load.
    pub(crate) fn needs_reload(&self) -> bool {
        self.is_retry_pending
            || (!self.parked.is_empty() && self.loaded_at.elapsed() > RETRY_CHECK_INTERVAL)
    }

    /// Reloads the parked keys, which operators can change.
    pub(crate) async fn reload(&mut self) -> Result<(), CheckpointError> {
        self.parked = self.storage.parked_keys().await?;
        self.loaded_at = Instant::now();
        self.is_retry_pending = false;
        Ok(())
    }

    /// Requests another reload at once, because one page did not hold all events to retry.
    pub(crate) fn reload_soon(&mut self) {
        self.is_retry_pending = true;
    }
}

fn contains(keys_by_topic: &HashMap<String, HashSet<String>>, topic: &str, key: &str) -> bool {
    // Mostly there is none. Then no text is hashed.
    !keys_by_topic.is_empty() && (keys_by_topic.get(topic)).is_some_and(|keys| keys.contains(key))
}
