//! The leader's SQL of parked keys and dead letters.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{error::SqlState, types::ToSql};
use uuid::Uuid;

use crate::{
    config::Mapping,
    postgres::{
        checkpoint::CheckpointError,
        leader::Leadership,
        reader::{COLUMNS, Page, ReadError, Reader, Row},
    },
};

/// The prefix of the error of an event that an operator dropped.
pub(super) const DROPPED: &str = "dropped by an operator; ";
/// The most dead letters that are counted. They stay until an operator deletes them.
const MAX_COUNTED: i64 = 10_000;
/// The condition for the row of an event in either table.
const EVENT_ROW: &str = "source = $1 and seq = $3 and event_id = $4";
/// The condition that this relay leads, until the end of the statement. The next leader reads these tables once and caches
/// them, so a former leader must not write to them.
const IS_LEADER: &str = "exists (select from relay_checkpoints
    where source = $1 and epoch = $2 for share)";

/// Identifies an event of a source. Several can have the same seq, because a sequence can be set back.
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

/// The response of the dead-letter topic to a dead letter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delivery {
    Sent,
    Rejected,
}

/// Stores the parked events and dead letters of a source. Only its leader writes them; operators request retries and drop
/// events.
pub(super) struct Storage<'a> {
    leadership: &'a Leadership,
    mapping: &'a Mapping,
}

impl<'a> Storage<'a> {
    pub(super) fn new(leadership: &'a Leadership, mapping: &'a Mapping) -> Self {
        Self {
            leadership,
            mapping,
        }
    }

    /// Loads the parked keys by topic.
    pub(super) async fn parked_keys(
        &self,
    ) -> Result<HashMap<String, HashSet<String>>, CheckpointError> {
        let sql = format!("{} select topic, key from parked_key", with_parked_keys());
        let (session, source) = (self.leadership.session(), self.leadership.source());
        let mut parked: HashMap<String, HashSet<String>> = HashMap::new();
        for row in session.query(&sql, &[&source]).await? {
            parked.entry(row.get(0)).or_default().insert(row.get(1));
        }
        Ok(parked)
    }

    /// Parks copies of outbox events. `error` is why the first event of a key was rejected.
    pub(super) async fn park(
        &self,
        events: &[EventRef],
        error: Option<&str>,
    ) -> Result<(), CheckpointError> {
        let sql = format!(
            "with given as (select distinct * from unnest($3::bigint[], $4::uuid[]) as given (seq, event_id))
             insert into relay_parked (source, {COLUMNS}, error)
             select distinct $1, {COLUMNS}, $5 from given join {} using (seq, event_id)
             where outbox.seq = any ($3) and {IS_LEADER}
             on conflict (source, seq, event_id)
                 do update set error = coalesce(excluded.error, relay_parked.error), retry = false",
            self.mapping.outbox()
        );
        self.store(&sql, events, &error).await.map(drop)
    }

    /// Copies rejected events from the outbox to the dead letters, each with its error. Returns how many.
    pub(super) async fn add_dead_letters(
        &self,
        events: &[EventRef],
        errors: &[String],
    ) -> Result<u64, CheckpointError> {
        let sql = format!(
            "with given as (
                 select distinct on (seq, event_id) *
                 from unnest($3::bigint[], $4::uuid[], $5::text[]) as given (seq, event_id, error)
             )
             insert into relay_dead_letters (source, {COLUMNS}, error)
             select distinct $1, {COLUMNS}, given.error
             from given join {} using (seq, event_id)
             where outbox.seq = any ($3) and {IS_LEADER}
             on conflict (source, seq, event_id) do update set error = excluded.error",
            self.mapping.outbox()
        );
        self.store(&sql, events, &errors).await
    }

    /// Runs a statement whose parameters `$1` to `$5` are the source, the epoch, the seqs, the event ids and the errors.
    async fn store(
        &self,
        sql: &str,
        events: &[EventRef],
        error: &(dyn ToSql + Sync),
    ) -> Result<u64, CheckpointError> {
        let (seqs, event_ids) = columns_of(events);
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let params: [&(dyn ToSql + Sync); 5] = [&source, &epoch, &seqs, &event_ids, error];
        let stored = self.leadership.session().execute(sql, &params).await;
        let stored = stored.map_err(|err| match err.code() {
            // Two rows share seq and event id, and differ.
            Some(&SqlState::CARDINALITY_VIOLATION) => CheckpointError::SharedEventId,
            _ => err.into(),
        })?;
        let expected = events.iter().collect::<HashSet<_>>().len();
        if stored == expected as u64 {
            return Ok(stored);
        }
        self.ensure_leader().await?;
        Err(CheckpointError::RowDeleted)
    }

    /// Stores the new error of a parked event that was rejected again.
    pub(super) async fn park_again(
        &self,
        event: EventRef,
        error: &str,
    ) -> Result<(), CheckpointError> {
        let sql = format!(
            "update relay_parked set error = $5, retry = false where {EVENT_ROW} and {IS_LEADER}"
        );
        // Without such a row an operator has dropped the event meanwhile.
        self.update_event(&sql, event, Some(error)).await.map(drop)
    }

    /// Stores whether the dead-letter topic accepted the event.
    pub(super) async fn record_delivery(
        &self,
        event: EventRef,
        delivery: Delivery,
    ) -> Result<(), CheckpointError> {
        let sql = format!(
            "update relay_dead_letters set in_topic = $5 where {EVENT_ROW} and {IS_LEADER}"
        );
        let delivery = match delivery {
            Delivery::Sent => "sent",
            Delivery::Rejected => "rejected",
        };
        // Without such a row an operator has deleted the dead letter meanwhile.
        self.update_event(&sql, event, Some(delivery))
            .await
            .map(drop)
    }

    /// Removes parked events that were published.
    pub(super) async fn unpark(&self, events: &[EventRef]) -> Result<(), CheckpointError> {
        let deleted = self.delete("relay_parked", "true", events).await?;
        if deleted == events.len() as u64 {
            return Ok(());
        }
        self.ensure_leader().await?;
        // An operator dropped events while they were in flight. Delete these dead letters, because the events were published.
        let is_dropped = format!("error like '{DROPPED}%'");
        let deleted = self.delete("relay_dead_letters", &is_dropped, events);
        deleted.await.map(drop)
    }

    /// Deletes the rows of events that meet a condition. Returns how many.
    async fn delete(
        &self,
        table: &str,
        condition: &str,
        events: &[EventRef],
    ) -> Result<u64, CheckpointError> {
        let sql = format!(
            "delete from {table} using unnest($3::bigint[], $4::uuid[]) as given (seq, event_id)
             where source = $1 and {table}.seq = given.seq and {table}.event_id = given.event_id
                 and {condition} and {IS_LEADER}"
        );
        let (seqs, event_ids) = columns_of(events);
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let params: [&(dyn ToSql + Sync); 4] = [&source, &epoch, &seqs, &event_ids];
        Ok(self.leadership.session().execute(&sql, &params).await?)
    }

    /// Runs a statement on the row of an event. Returns whether there was one. Fails if this relay does not lead any more.
    async fn update_event(
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
        self.ensure_leader().await.map(|()| false)
    }

    async fn ensure_leader(&self) -> Result<(), CheckpointError> {
        let sql = format!("select {IS_LEADER}");
        let (source, epoch) = (self.leadership.source(), self.leadership.epoch());
        let session = self.leadership.session();
        match session.query_one(&sql, &[&source, &epoch]).await?.get(0) {
            true => Ok(()),
            false => Err(CheckpointError::Superseded),
        }
    }
}

/// Returns the events as two arrays of SQL.
fn columns_of(events: &[EventRef]) -> (Vec<i64>, Vec<Uuid>) {
    let pairs = events.iter().map(|event| (event.seq, event.event_id));
    pairs.unzip()
}

/// Returns a `with` clause for statements about parked events: `parked_key` has the first event of each parked key. It skips
/// from key to key in the index, however many events each has. `$1` is the source.
fn with_parked_keys() -> String {
    let first = |condition: &str| {
        format!(
            "(select topic, key, error, retry from relay_parked
              where source = $1 {condition} order by topic, key, seq, event_id limit 1)"
        )
    };
    format!(
        "with recursive parked_key as (
             {}
             union all
             select next.* from parked_key, lateral {} as next
         )",
        first(""),
        first("and (topic, key) > (parked_key.topic, parked_key.key)")
    )
}

/// Reads parked events to retry: those of keys whose first event has a retry requested, or was published or dropped
/// meanwhile.
pub(crate) async fn read_parked_page(
    reader: &Reader,
    source: &str,
    max_rows: usize,
) -> Result<Page, ReadError> {
    let sql = format!(
        "{}
         select of_key.* from parked_key, lateral (
             select {COLUMNS} from relay_parked
             where source = $1 and (topic, key) = (parked_key.topic, parked_key.key)
             order by seq, event_id limit $2
         ) as of_key
         where parked_key.error is null or parked_key.retry
         order by seq, event_id limit $2",
        with_parked_keys()
    );
    read_page(reader, &sql, source, max_rows).await
}

/// Reads dead letters that are not in their topic yet, with the headers that describe the rejection.
pub(crate) async fn read_pending_page(
    reader: &Reader,
    source: &str,
    max_rows: usize,
) -> Result<Page, ReadError> {
    let sql = format!(
        "select {COLUMNS} from (
             select {with_own_headers}, coalesce(dead_letter.headers, '{{}}') || jsonb_build_object(
                 'dead_letter_topic', topic, 'dead_letter_seq', seq::text, 'dead_letter_error', error
             ) as headers
             from relay_dead_letters as dead_letter
             where source = $1 and in_topic = 'pending' order by seq, event_id limit $2
         ) as pending",
        with_own_headers = COLUMNS.replace("headers,", "")
    );
    read_page(reader, &sql, source, max_rows).await
}

/// Reads the page of a statement whose parameters are the source and the limit.
async fn read_page(
    reader: &Reader,
    sql: &str,
    source: &str,
    max_rows: usize,
) -> Result<Page, ReadError> {
    let limit = i64::try_from(max_rows).unwrap_or(i64::MAX);
    reader.query_page(sql, &[&source, &limit], max_rows).await
}

/// Returns two columns of a select list: the numbers of parked keys and of dead letters of the source `$1`.
pub(crate) fn rejection_counts_sql() -> String {
    format!(
        "({} select count(*) from parked_key),
         (select count(*) from (
              select from relay_dead_letters where source = $1 limit {MAX_COUNTED}) as dead_letters)",
        with_parked_keys()
    )
}
