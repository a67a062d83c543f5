//! Events that Kafka refuses for good: where they wait, or end up, so that others can go on.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::{
    config::Mapping,
    postgres::{
        checkpoint::CheckpointError,
        leader::Leadership,
        reader::{Row, parked_keys},
    },
};

/// Keys that may be parked, a source. More of them mean that it is not a record that is at fault.
pub(crate) const MAX_PARKED_KEYS: usize = 1_000;
/// A longer key can't be parked: the index by which parked keys are found takes no longer entry.
pub(crate) const MAX_PARKED_KEY_BYTES: usize = 2_000;
/// Dead letters that are stored with one statement. More of them would save little, and the
/// statement looks through all of them for the reason of each.
const MAX_UNBURIED: usize = 500;
/// How often it is looked whether somebody wants a parked key tried again.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What the error of an event begins with that an operator has dropped.
pub(crate) const DROPPED: &str = "dropped by an operator; ";
/// What is kept of an event.
pub(crate) const COLUMNS: &str =
    "seq, event_id, topic, key, event_type, aggregate_version, payload, headers,
    traceparent, created_at";
/// The row of an event in either table.
const THE_EVENT: &str = "source = $1 and seq = $3 and event_id = $4";
/// True for the leader alone, until the statement ends. Its successor reads these tables once and then
/// knows them by heart, so nobody else may write to them behind its back.
const LEADS: &str = "exists (select from relay_checkpoints
    where source = $1 and epoch = $2 for share)";

/// Which event of a source it is. Two can have the same seq, because a sequence can be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EventRef {
    pub(crate) seq: i64,
    pub(crate) event_id: Uuid,
}

impl From<&Row<'_>> for EventRef {
    fn from(row: &Row<'_>) -> Self {
        Self {
            seq: row.seq,
            event_id: row.event_id,
        }
    }
}

/// What of a source is set aside. Only its leader writes here, but for the wishes of operators.
pub(crate) struct Aside<'a> {
    leadership: &'a Leadership,
    mapping: &'a Mapping,
    /// The keys that are parked, by topic.
    parked: HashMap<String, HashSet<String>>,
    /// Events that wait behind a parked one, and are not stored yet.
    behind: Vec<EventRef>,
    /// Dead letters that are not stored yet.
    unburied: Unburied,
    looked_at: Instant,
    /// Something may wait to be tried again: dead letters for their topic, for example.
    is_due: bool,
}

#[derive(Default)]
struct Unburied {
    events: Vec<EventRef>,
    errors: Vec<String>,
    /// Their keys, by topic.
    keys: HashMap<String, HashSet<String>>,
}

impl<'a> Aside<'a> {
    pub(crate) async fn load(
        leadership: &'a Leadership,
        mapping: &'a Mapping,
    ) -> Result<Self, CheckpointError> {
        let sql = format!("{} select topic, key from parked_key", parked_keys("$1"));
        let rows = leadership
            .session()
            .query(&sql, &[&leadership.source()])
            .await?;
        let mut parked: HashMap<String, HashSet<String>> = HashMap::new();
        for row in rows {
            parked.entry(row.get(0)).or_default().insert(row.get(1));
        }
        Ok(Self {
            leadership,
            mapping,
            parked,
            behind: Vec::new(),
            unburied: Unburied::default(),
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
    pub(crate) fn must_bury_before(&self, topic: &str, key: &str) -> bool {
        self.unburied.events.len() >= MAX_UNBURIED || has(&self.unburied.keys, topic, key)
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
        self.store_buried().await
    }

    async fn store_parked(&mut self) -> Result<(), CheckpointError> {
        if self.behind.is_empty() {
            return Ok(());
        }
        self.insert_parked(&self.behind, None).await?;
        self.behind.clear();
        Ok(())
    }

    /// Parks the event, which was refused, and its key with it.
    pub(crate) async fn park(
        &mut self,
        event: EventRef,
        topic: &str,
        key: &str,
        error: &str,
    ) -> Result<(), CheckpointError> {
        self.insert_parked(&[event], Some(error)).await?;
        self.parked
            .entry(topic.to_owned())
            .or_default()
            .insert(key.to_owned());
        Ok(())
    }

    async fn insert_parked(
        &self,
        events: &[EventRef],
        error: Option<&str>,
    ) -> Result<(), CheckpointError> {
        let sql = format!(
            "with given as (select distinct * from unnest($3::bigint[], $4::uuid[]) as given (seq, event_id))
             insert into relay_parked (source, {COLUMNS}, error)
             select distinct on (seq, event_id) $1, {COLUMNS}, $5 from given join {} using (seq, event_id)
             where outbox.seq = any ($3) and {LEADS}
             on conflict (source, seq, event_id)
                 do update set error = coalesce(excluded.error, relay_parked.error), retry = false",
            self.mapping.outbox()
        );
        let (seqs, event_ids) = columns_of(events);
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let params: [&(dyn ToSql + Sync); 5] = [&source, &epoch, &seqs, &event_ids, &error];
        let stored = self.leadership.session().execute(&sql, &params).await?;
        self.ensure_all_stored(stored, events).await
    }

    /// A parked event was refused once more.
    pub(crate) async fn park_again(
        &self,
        event: EventRef,
        error: &str,
    ) -> Result<(), CheckpointError> {
        let sql = format!(
            "update relay_parked set error = $5, retry = false where {THE_EVENT} and {LEADS}"
        );
        // If it isn't there, an operator has dropped it meanwhile.
        self.change(&sql, event, Some(error)).await.map(drop)
    }

    /// Puts the event, which was refused, among the dead letters. It is stored with the
    /// next [`store`](Self::store).
    pub(crate) fn bury(&mut self, event: EventRef, topic: &str, key: &str, error: String) {
        self.unburied.events.push(event);
        self.unburied.errors.push(error);
        let keys = self.unburied.keys.entry(topic.to_owned()).or_default();
        keys.insert(key.to_owned());
    }

    async fn store_buried(&mut self) -> Result<u64, CheckpointError> {
        let Unburied { events, errors, .. } = &self.unburied;
        if events.is_empty() {
            return Ok(0);
        }
        let sql = format!(
            "with given as (
                 select distinct on (seq, event_id) *
                 from unnest($3::bigint[], $4::uuid[], $5::text[]) as given (seq, event_id, error)
             )
             insert into relay_dead_letters (source, {COLUMNS}, error)
             select distinct on (seq, event_id) $1, {COLUMNS}, given.error
             from given join {} using (seq, event_id)
             where outbox.seq = any ($3) and {LEADS}
             on conflict (source, seq, event_id) do update set error = excluded.error",
            self.mapping.outbox()
        );
        let (seqs, event_ids) = columns_of(events);
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let params: [&(dyn ToSql + Sync); 5] = [&source, &epoch, &seqs, &event_ids, &errors];
        let stored = self.leadership.session().execute(&sql, &params).await?;
        self.ensure_all_stored(stored, events).await?;
        self.unburied = Unburied::default();
        self.is_due = true;
        Ok(stored)
    }

    /// Notes what became of the event in the dead letter topic.
    pub(crate) async fn buried_in_topic(
        &mut self,
        event: EventRef,
        is_sent: bool,
    ) -> Result<(), CheckpointError> {
        let sql =
            format!("update relay_dead_letters set in_topic = $5 where {THE_EVENT} and {LEADS}");
        let state = if is_sent { "sent" } else { "refused" };
        // If it isn't there, an operator has deleted it meanwhile.
        self.change(&sql, event, Some(state)).await.map(drop)
    }

    /// The event was shipped after all.
    pub(crate) async fn unpark(
        &mut self,
        event: EventRef,
        topic: &str,
        key: &str,
    ) -> Result<(), CheckpointError> {
        let sql =
            format!("delete from relay_parked where {THE_EVENT} and $5::text is null and {LEADS}");
        if !self.change(&sql, event, None).await? {
            // An operator has dropped it while it was on its way. It has arrived, so it is no dead letter.
            let sql = format!(
                "delete from relay_dead_letters
                 where {THE_EVENT} and error like '{DROPPED}%' and $5::text is null and {LEADS}"
            );
            self.change(&sql, event, None).await?;
        }
        let sql = "select exists (select from relay_parked
                       where source = $1 and topic = $2 and key = $3)";
        let (session, source) = (self.leadership.session(), self.leadership.source());
        let row = session.query_one(sql, &[&source, &topic, &key]).await?;
        let is_left: bool = row.get(0);
        if !is_left && let Some(keys) = self.parked.get_mut(topic) {
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
        *self = Self::load(self.leadership, self.mapping).await?;
        self.is_due = false;
        Ok(())
    }

    /// There was more than one look takes.
    pub(crate) fn reload_soon(&mut self) {
        self.is_due = true;
    }

    /// Whether there was such a row; an error if this relay leads no more.
    async fn change(
        &self,
        sql: &str,
        EventRef { seq, event_id }: EventRef,
        text: Option<&str>,
    ) -> Result<bool, CheckpointError> {
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let params: [&(dyn ToSql + Sync); 5] = [&source, &epoch, &seq, &event_id, &text];
        if self.leadership.session().execute(sql, &params).await? > 0 {
            return Ok(true);
        }
        self.ensure_leads().await.map(|()| false)
    }

    /// An error if fewer events were stored than were given.
    async fn ensure_all_stored(
        &self,
        stored: u64,
        events: &[EventRef],
    ) -> Result<(), CheckpointError> {
        let mut known = HashSet::new();
        let expected = events.iter().filter(|event| known.insert(**event)).count();
        if stored == expected as u64 {
            return Ok(());
        }
        self.ensure_leads().await?;
        Err(CheckpointError::Gone)
    }

    async fn ensure_leads(&self) -> Result<(), CheckpointError> {
        let sql = format!("select {LEADS}");
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let session = self.leadership.session();
        match session.query_one(&sql, &[&source, &epoch]).await?.get(0) {
            true => Ok(()),
            false => Err(CheckpointError::Superseded),
        }
    }
}

/// The same as two columns.
fn columns_of(events: &[EventRef]) -> (Vec<i64>, Vec<Uuid>) {
    events
        .iter()
        .map(|event| (event.seq, event.event_id))
        .unzip()
}

fn has(keys_by_topic: &HashMap<String, HashSet<String>>, topic: &str, key: &str) -> bool {
    // Mostly there is none: then no text is hashed.
    !keys_by_topic.is_empty() && (keys_by_topic.get(topic)).is_some_and(|keys| keys.contains(key))
}
