//! Events that Kafka refuses for good: where they wait, or end up, so that others can go on.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::{
    checkpoint::CheckpointError, config::Mapping, leader::Leadership, reader::parked_keys,
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
const PARKED: &str = "relay_parked";
const DEAD_LETTERS: &str = "relay_dead_letters";
/// What is kept of an event.
pub(crate) const COLUMNS: &str =
    "seq, event_id, topic, key, event_type, aggregate_version, payload, headers,
    traceparent, created_at";
/// True for the leader alone, until the statement ends. Its successor reads these tables once and then
/// knows them by heart, so nobody else may write to them behind its back.
const LEADS: &str = "exists (select from relay_checkpoints
    where source = $1 and epoch = $2 for share)";

/// What of a source is set aside. Only its leader writes here, but for the wishes of operators.
pub(crate) struct Aside<'a> {
    leadership: &'a Leadership,
    mapping: &'a Mapping,
    /// The keys that are parked, by topic.
    parked: HashMap<String, HashSet<String>>,
    /// Events that wait behind a parked one, and are not stored yet.
    behind: Vec<i64>,
    /// Dead letters that are not stored yet.
    unburied: Unburied,
    looked_at: Instant,
    /// Something may wait to be tried again: dead letters for their topic, for example.
    is_due: bool,
}

#[derive(Default)]
struct Unburied {
    seqs: Vec<i64>,
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
            .client()
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
        self.unburied.seqs.len() >= MAX_UNBURIED || has(&self.unburied.keys, topic, key)
    }

    /// How many keys are parked.
    pub(crate) fn parked_keys(&self) -> usize {
        self.parked.values().map(HashSet::len).sum()
    }

    /// Parks the event with this seq behind another one of its key. It is stored with the next
    /// [`store`](Self::store).
    pub(crate) fn park_behind(&mut self, seq: i64) {
        self.behind.push(seq);
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
        let sql = format!(
            "insert into relay_parked (source, {COLUMNS})
             select $1, {COLUMNS} from {} where seq = any ($3) and {LEADS}
             on conflict (source, seq) do update set retry = false
                 where relay_parked.event_id = excluded.event_id",
            self.mapping.outbox()
        );
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let client = self.leadership.client();
        let stored = client
            .execute(&sql, &[&source, &epoch, &self.behind])
            .await?;
        if stored != self.behind.len() as u64 {
            return Err(self.why_not_stored(PARKED, &self.behind).await?);
        }
        self.behind.clear();
        Ok(())
    }

    /// Parks the event with this seq, which was refused, and its key with it.
    pub(crate) async fn park(
        &mut self,
        seq: i64,
        topic: &str,
        key: &str,
        error: &str,
    ) -> Result<(), CheckpointError> {
        let sql = format!(
            "insert into relay_parked (source, {COLUMNS}, error)
             select $1, {COLUMNS}, $4 from {} where seq = $3 and {LEADS}
             on conflict (source, seq) do update set error = excluded.error, retry = false
                 where relay_parked.event_id = excluded.event_id",
            self.mapping.outbox()
        );
        if !self.change(&sql, seq, Some(error)).await? {
            return Err(self.why_not_stored(PARKED, &[seq]).await?);
        }
        self.parked
            .entry(topic.to_owned())
            .or_default()
            .insert(key.to_owned());
        Ok(())
    }

    /// A parked event was refused once more.
    pub(crate) async fn park_again(&self, seq: i64, error: &str) -> Result<(), CheckpointError> {
        let sql = format!(
            "update relay_parked set error = $4, retry = false
             where source = $1 and seq = $3 and {LEADS}"
        );
        // If it isn't there, an operator has dropped it meanwhile.
        self.change(&sql, seq, Some(error)).await.map(drop)
    }

    /// Puts the event with this seq, which was refused, among the dead letters. It is stored with the
    /// next [`store`](Self::store).
    pub(crate) fn bury(&mut self, seq: i64, topic: &str, key: &str, error: String) {
        self.unburied.seqs.push(seq);
        self.unburied.errors.push(error);
        let keys = self.unburied.keys.entry(topic.to_owned()).or_default();
        keys.insert(key.to_owned());
    }

    async fn store_buried(&mut self) -> Result<u64, CheckpointError> {
        let Unburied { seqs, errors, .. } = &self.unburied;
        if seqs.is_empty() {
            return Ok(0);
        }
        let sql = format!(
            "insert into relay_dead_letters (source, {COLUMNS}, error)
             select $1, {COLUMNS}, ($4::text[])[array_position($3, seq)] from {}
             where seq = any ($3) and {LEADS}
             on conflict (source, seq) do update set error = excluded.error
                 where relay_dead_letters.event_id = excluded.event_id",
            self.mapping.outbox()
        );
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let client = self.leadership.client();
        let stored = client
            .execute(&sql, &[&source, &epoch, &seqs, &errors])
            .await?;
        if stored != seqs.len() as u64 {
            return Err(self.why_not_stored(DEAD_LETTERS, seqs).await?);
        }
        self.unburied = Unburied::default();
        self.is_due = true;
        Ok(stored)
    }

    /// Notes what became of the event in the dead letter topic.
    pub(crate) async fn buried_in_topic(
        &mut self,
        seq: i64,
        is_sent: bool,
    ) -> Result<(), CheckpointError> {
        let sql = format!(
            "update relay_dead_letters set in_topic = $4 where source = $1 and seq = $3 and {LEADS}"
        );
        let state = if is_sent { "sent" } else { "refused" };
        // If it isn't there, an operator has deleted it meanwhile.
        self.change(&sql, seq, Some(state)).await.map(drop)
    }

    /// The event was shipped after all.
    pub(crate) async fn unpark(
        &mut self,
        seq: i64,
        topic: &str,
        key: &str,
    ) -> Result<(), CheckpointError> {
        let sql = format!(
            "delete from relay_parked
             where source = $1 and seq = $3 and $4::text is null and {LEADS}"
        );
        if !self.change(&sql, seq, None).await? {
            // An operator has dropped it while it was on its way. It has arrived, so it is no dead letter.
            let sql = format!(
                "delete from relay_dead_letters
                 where source = $1 and seq = $3 and error like '{DROPPED}%' and $4::text is null and {LEADS}"
            );
            self.change(&sql, seq, None).await?;
        }
        let sql = "select exists (select from relay_parked
                       where source = $1 and topic = $2 and key = $3)";
        let (client, source) = (self.leadership.client(), self.leadership.source());
        let row = client.query_one(sql, &[&source, &topic, &key]).await?;
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
        seq: i64,
        error: Option<&str>,
    ) -> Result<bool, CheckpointError> {
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let client = self.leadership.client();
        let changed = client
            .execute(sql, &[&source, &epoch, &seq, &error])
            .await?;
        if changed > 0 {
            return Ok(true);
        }
        let sql = format!("select {LEADS}");
        let leads = client.query_one(&sql, &[&source, &epoch]).await?.get(0);
        match leads {
            true => Ok(false),
            false => Err(CheckpointError::Superseded),
        }
    }

    /// Why these events of the outbox could not be stored in `table`.
    async fn why_not_stored(
        &self,
        table: &'static str,
        seqs: &[i64],
    ) -> Result<CheckpointError, CheckpointError> {
        let sql = format!(
            "select {LEADS}, (
                 select min(kept.seq) from {table} as kept, {}
                 where kept.source = $1 and kept.seq = any ($3) and outbox.seq = kept.seq
                     and outbox.event_id <> kept.event_id
             )",
            self.mapping.outbox()
        );
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let client = self.leadership.client();
        let row = client.query_one(&sql, &[&source, &epoch, &seqs]).await?;
        Ok(match (row.get(0), row.get(1)) {
            (false, _) => CheckpointError::Superseded,
            (true, Some(seq)) => CheckpointError::Occupied { table, seq },
            (true, None) => CheckpointError::Gone,
        })
    }
}

fn has(keys_by_topic: &HashMap<String, HashSet<String>>, topic: &str, key: &str) -> bool {
    // Mostly there is none: then no text is hashed.
    !keys_by_topic.is_empty() && (keys_by_topic.get(topic)).is_some_and(|keys| keys.contains(key))
}
