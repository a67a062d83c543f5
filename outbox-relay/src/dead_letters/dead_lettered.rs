//! The operator's commands for dead letters.

use std::time::Duration;

use cli::MAX_TOPIC_NAME_CHARS;
use serde::Serialize;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    event::{StoredEvent, StoredIn},
    rejections::{MAX_PARKED_KEY_BYTES, MAX_PARKED_KEYS},
};
use crate::{
    config::SourceConfig,
    postgres::{
        reader::COLUMNS,
        session::{self, DatabaseError, Session},
    },
};

/// The condition of a [`Selection`].
const IS_SELECTED: &str =
    "source = $1 and ($2::text is null or key = $2) and ($3::bigint is null or seq = $3)
     and ($4::uuid is null or event_id = $4)
     and ($5::float8 is null or dead_lettered_at < clock_timestamp() - make_interval(secs => $5))
     and ($6::text is null or topic = $6)";

/// The dead letters of a source, for an operator. The relay need not run.
#[derive(Debug)]
pub struct DeadLetters {
    session: Session,
    source: String,
}

/// A dead letter in a list.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// The topic of the event.
    pub topic: String,
    /// The key of the record.
    pub key: String,
    /// The order of the event in the outbox.
    pub seq: i64,
    /// The id of the event.
    pub event_id: Uuid,
    /// The version of its aggregate, if the outbox has one.
    pub aggregate_version: Option<i64>,
    /// When it was dead-lettered, in UTC.
    pub dead_lettered_at: String,
    /// The reason of the rejection.
    pub error: String,
}

/// The dead letters that a command applies to: those that match every field that is set.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Of this topic.
    pub topic: Option<String>,
    /// Of this key.
    pub key: Option<String>,
    /// With this seq.
    pub seq: Option<i64>,
    /// With this event id.
    pub event_id: Option<Uuid>,
    /// Dead-lettered longer ago than this, by the clock of the database.
    pub older_than: Option<Duration>,
}

/// The result of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retried {
    /// The dead letters that were moved to the parked events.
    pub moved: u64,
    /// The selected ones that were not, because there were too many, or their keys or topics are too long to be parked.
    pub remaining: u64,
}

impl DeadLetters {
    /// Connects to the source's database.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn connect(source: &SourceConfig) -> Result<Self, DatabaseError> {
        Ok(Self {
            session: session::connect(&source.database_url, "outbox-relay dead-letters").await?,
            source: source.name.clone(),
        })
    }

    /// Lists dead letters in the order of the outbox, at most `limit`.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn list(
        &self,
        selection: &Selection,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, DatabaseError> {
        let sql = format!(
            "select topic, key, seq, event_id,
                 to_char(dead_lettered_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), error,
                 aggregate_version
             from relay_dead_letters where {IS_SELECTED} order by seq, event_id limit {limit}"
        );
        let rows = self.query(&sql, selection).await?;
        let dead_letter = |row: &tokio_postgres::Row| DeadLetter {
            topic: row.get(0),
            key: row.get(1),
            seq: row.get(2),
            event_id: row.get(3),
            dead_lettered_at: row.get(4),
            error: row.get(5),
            aggregate_version: row.get(6),
        };
        Ok(rows.iter().map(dead_letter).collect())
    }

    /// Returns the dead letters with this seq. There is usually one.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn find(
        &self,
        seq: i64,
        event_id: Option<Uuid>,
    ) -> Result<Vec<StoredEvent>, DatabaseError> {
        let table = StoredIn::DeadLetters;
        StoredEvent::find(&self.session, &self.source, table, seq, event_id).await
    }

    /// Moves dead letters to the parked events and asks the leading relay to retry them. It publishes them in the order of the
    /// outbox, and holds back later events of their keys meanwhile. The first ones are moved, until 1,000 events are parked.
    ///
    /// # Errors
    /// If the statement fails. Then nothing is moved.
    pub async fn retry(&self, selection: &Selection) -> Result<Retried, DatabaseError> {
        let sql = format!(
            "with selected as (
                 select seq, event_id from relay_dead_letters
                 where {IS_SELECTED} and octet_length(key) <= {MAX_PARKED_KEY_BYTES}
                     and octet_length(topic) <= {MAX_TOPIC_NAME_CHARS}
                 order by seq, event_id
                 limit greatest(0, {MAX_PARKED_KEYS} - (select count(*) from relay_parked where source = $1))
                 for update
             ), moved as (
                 delete from relay_dead_letters as dead_letter using selected
                 where dead_letter.source = $1
                     and (dead_letter.seq, dead_letter.event_id) = (selected.seq, selected.event_id)
                 returning dead_letter.*
             ), parked as (
                 insert into relay_parked (source, {COLUMNS}, error, retry)
                 select source, {COLUMNS}, error, true from moved
                 on conflict (source, seq, event_id) do update set error = excluded.error, retry = true
                 returning 1
             )
             select (select count(*) from parked), (select count(*) from relay_dead_letters where {IS_SELECTED})"
        );
        let rows = self.query(&sql, selection).await?;
        let count = |column| {
            let count = rows.first().map_or(0, |row| row.get::<_, i64>(column));
            u64::try_from(count).unwrap_or(0)
        };
        let (moved, selected) = (count(0), count(1));
        Ok(Retried {
            moved,
            // The statement counts those that it moves, too.
            remaining: selected.saturating_sub(moved),
        })
    }

    /// Deletes dead letters. Returns how many.
    ///
    /// # Errors
    /// If the statement fails.
    pub async fn delete(&self, selection: &Selection) -> Result<u64, DatabaseError> {
        let sql = format!(
            "with deleted as (delete from relay_dead_letters where {IS_SELECTED} returning 1)
             select count(*) from deleted"
        );
        let rows = self.query(&sql, selection).await?;
        let count = rows.first().map_or(0, |row| row.get::<_, i64>(0));
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn query(
        &self,
        sql: &str,
        selection: &Selection,
    ) -> Result<Vec<tokio_postgres::Row>, DatabaseError> {
        let Selection {
            topic,
            key,
            seq,
            event_id,
            older_than,
        } = selection;
        let older_than_s = older_than.map(|older_than| older_than.as_secs_f64());
        let params: [&(dyn ToSql + Sync); 6] =
            [&self.source, key, seq, event_id, &older_than_s, topic];
        self.session.query(sql, &params).await
    }
}
