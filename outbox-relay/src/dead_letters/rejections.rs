//! Events that Kafka rejects for good: where they wait, or end up, so that others can go on.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::storage::{EventRef, InTopic, Storage};
use crate::{
    config::Mapping,
    postgres::{checkpoint::CheckpointError, leader::Leadership},
};

/// Keys that may be parked, a source. More of them mean that it is not a record that is at fault.
pub(crate) const MAX_PARKED_KEYS: usize = 1_000;
/// A longer key can't be parked: the index by which parked keys are found takes no longer entry.
pub(crate) const MAX_PARKED_KEY_BYTES: usize = 2_000;
/// Dead letters that are stored with one statement. More of them would save little, and the
/// statement looks through all of them for the reason of each.
const MAX_PENDING_DEAD_LETTERS: usize = 500;
/// How often it is looked whether somebody wants a parked key tried again.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What of a source is set rejections: what of it the leader knows by heart, and what is still to be stored.
pub(crate) struct Rejections<'a> {
    storage: Storage<'a>,
    /// The keys that are parked, by topic.
    parked: HashMap<String, HashSet<String>>,
    /// Events that wait behind a parked one, and are not stored yet.
    behind: Vec<EventRef>,
    /// Dead letters that are not stored yet.
    pending: PendingDeadLetters,
    looked_at: Instant,
    /// Something may wait to be tried again: dead letters for their topic, for example.
    is_due: bool,
}

#[derive(Default)]
struct PendingDeadLetters {
    events: Vec<EventRef>,
    errors: Vec<String>,
    /// Their keys, by topic.
    keys: HashMap<String, HashSet<String>>,
}

impl<'a> Rejections<'a> {
    pub(crate) async fn load(
        leadership: &'a Leadership,
        mapping: &'a Mapping,
    ) -> Result<Self, CheckpointError> {
        let storage = Storage::new(leadership, mapping);
        Ok(Self {
            parked: storage.parked_keys().await?,
            storage,
            behind: Vec::new(),
            pending: PendingDeadLetters::default(),
            looked_at: Instant::now(),
            is_due: true,
        })
    }

    /// Whether events of this key have to wait behind one that is parked.
    pub(crate) fn is_parked(&self, topic: &str, key: &str) -> bool {
        has(&self.parked, topic, key)
    }

    /// Whether dead letters have to be stored before an event of this key is sent: nothing goes past
    /// one of its key without a record of it. Also, if there are as many as one statement takes.
    pub(crate) fn must_store_before(&self, topic: &str, key: &str) -> bool {
        self.pending.events.len() >= MAX_PENDING_DEAD_LETTERS || has(&self.pending.keys, topic, key)
    }

    /// How many keys are parked.
    pub(crate) fn parked_keys(&self) -> usize {
        self.parked.values().map(HashSet::len).sum()
    }

    /// Parks the event behind another one of its key. It is stored with the next
    /// [`store`](Self::store).
    pub(crate) fn park_behind(&mut self, event: EventRef) {
        self.behind.push(event);
    }

    /// Stores what was parked behind others, and the dead letters, with a statement for each. Returns how
    /// many of the latter there were.
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

    /// Parks the event, which was rejected, and its key with it.
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

    /// A parked event was rejected once more.
    pub(crate) async fn park_again(
        &self,
        event: EventRef,
        error: &str,
    ) -> Result<(), CheckpointError> {
        self.storage.park_again(event, error).await
    }

    /// Puts the event, which was rejected, among the dead letters. It is stored with the
    /// next [`store`](Self::store).
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
        self.is_due = true;
        Ok(stored)
    }

    /// Notes what became of the event in the dead letter topic.
    pub(crate) async fn set_in_topic(
        &self,
        event: EventRef,
        in_topic: InTopic,
    ) -> Result<(), CheckpointError> {
        self.storage.set_in_topic(event, in_topic).await
    }

    /// The event was published after all.
    pub(crate) async fn unpark(
        &mut self,
        event: EventRef,
        topic: &str,
        key: &str,
    ) -> Result<(), CheckpointError> {
        self.storage.unpark(event).await?;
        if !self.storage.is_parked(topic, key).await?
            && let Some(keys) = self.parked.get_mut(topic)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.parked.remove(topic);
            }
        }
        Ok(())
    }

    /// Whether it is time to look for what somebody wants tried again.
    pub(crate) fn needs_reload(&self) -> bool {
        self.is_due || (!self.parked.is_empty() && self.looked_at.elapsed() > LOOK_INTERVAL)
    }

    /// Learns what operators have done.
    pub(crate) async fn reload(&mut self) -> Result<(), CheckpointError> {
        self.parked = self.storage.parked_keys().await?;
        self.looked_at = Instant::now();
        self.is_due = false;
        Ok(())
    }

    /// There was more than one look takes.
    pub(crate) fn reload_soon(&mut self) {
        self.is_due = true;
    }
}

fn has(keys_by_topic: &HashMap<String, HashSet<String>>, topic: &str, key: &str) -> bool {
    // Mostly there is none: then no text is hashed.
    !keys_by_topic.is_empty() && (keys_by_topic.get(topic)).is_some_and(|keys| keys.contains(key))
}
