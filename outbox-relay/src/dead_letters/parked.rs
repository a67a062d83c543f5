//! The operator's commands for parked keys.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    event::{StoredEvent, StoredIn},
    storage::DROPPED,
};
use crate::{
    config::SourceConfig,
    postgres::{
        reader::COLUMNS,
        session::{self, DatabaseError, Session},
    },
};

/// A parked key, for an operator.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ParkedKey {
    /// The topic of its events.
    pub topic: String,
    /// The key.
    pub key: String,
    /// The seq of the rejected event.
    pub rejected_seq: i64,
    /// The id of the rejected event.
    pub rejected_event_id: Uuid,
    /// The reason of the rejection.
    pub error: String,
    /// The number of parked events, including the rejected one.
    pub events: i64,
    /// True if a retry is requested.
    pub retry: bool,
}

/// The result of dropping an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DropOutcome {
    /// There is no such event.
    NotFound,
    /// The event is a dead letter now.
    Dropped,
    /// The event was not dropped: it is not the rejected one of its key, but parked behind it.
    NotRejected {
        /// The id of the event. The request must name it to drop the event.
        event_id: Uuid,
        /// The seq of the first event of its key.
        behind_seq: i64,
    },
    /// Nothing was dropped: these events share the seq.
    Ambiguous(Vec<Uuid>),
}

/// The parked keys of a source, for an operator. The relay need not run.
#[derive(Debug)]
pub struct ParkedKeys {
    session: Session,
    source: String,
}

impl ParkedKeys {
    /// Connects to the source's database.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn connect(source: &SourceConfig) -> Result<Self, DatabaseError> {
        Ok(Self {
            session: session::connect(&source.database_url, "outbox-relay parked").await?,
            source: source.name.clone(),
        })
    }

    /// Lists the parked keys, oldest first. There are about a thousand at most.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn list(&self) -> Result<Vec<ParkedKey>, DatabaseError> {
        list(&self.session, &self.source).await
    }

    /// Returns the parked events with this seq. There is usually one.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn find(
        &self,
        seq: i64,
        event_id: Option<Uuid>,
    ) -> Result<Vec<StoredEvent>, DatabaseError> {
        let table = StoredIn::Parked;
        StoredEvent::find(&self.session, &self.source, table, seq, event_id).await
    }

    /// Asks the leading relay to retry a key, or all of them. Returns how many.
    ///
    /// # Errors
    /// If the update fails.
    pub async fn retry(&self, key: Option<&str>) -> Result<u64, DatabaseError> {
        retry(&self.session, &self.source, key).await
    }

    /// Moves a parked event to the dead letters. The events behind it are published automatically. Without `event_id` the
    /// event must be the rejected one of its key, and the only one with this seq.
    ///
    /// # Errors
    /// If the update fails.
    pub async fn drop_event(
        &self,
        seq: i64,
        event_id: Option<Uuid>,
    ) -> Result<DropOutcome, DatabaseError> {
        drop_event(&self.session, &self.source, seq, event_id).await
    }
}

/// Lists the parked keys, oldest first.
async fn list(session: &Session, source: &str) -> Result<Vec<ParkedKey>, DatabaseError> {
    let sql = "select topic, key, min(seq), (array_agg(event_id order by seq, event_id))[1],
                   (array_agg(error order by seq, event_id))[1], count(*),
                   (array_agg(retry order by seq, event_id))[1]
               from relay_parked where source = $1 group by topic, key order by min(seq)";
    let rows = session.query(sql, &[&source]).await?;
    let parked = rows.iter().map(|row| ParkedKey {
        topic: row.get(0),
        key: row.get(1),
        rejected_seq: row.get(2),
        rejected_event_id: row.get(3),
        error: row.get::<_, Option<String>>(4).unwrap_or_default(),
        events: row.get(5),
        retry: row.get(6),
    });
    Ok(parked.collect())
}

/// Requests a retry of a key, or of all of them. Returns how many.
async fn retry(session: &Session, source: &str, key: Option<&str>) -> Result<u64, DatabaseError> {
    let sql = "with asked as (
                   update relay_parked set retry = true
                   where source = $1 and ($2::text is null or key = $2) and error is not null
                   returning topic, key
               )
               select count(distinct (topic, key)) from asked";
    let row = session.query_one(sql, &[&source, &key]).await?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// Moves a parked event to the dead letters. Without `event_id` it must be the first of its key, and the only one with this
/// seq.
async fn drop_event(
    session: &Session,
    source: &str,
    seq: i64,
    event_id: Option<Uuid>,
) -> Result<DropOutcome, DatabaseError> {
    let sql = format!(
        "with candidate as (
             select event_id, (
                 select before.seq from relay_parked as before
                 where (before.source, before.topic, before.key) = (parked.source, parked.topic, parked.key)
                     and (before.seq, before.event_id) < (parked.seq, parked.event_id)
                 order by before.seq, before.event_id limit 1
             ) as behind_seq
             from relay_parked as parked
             where source = $1 and seq = $2 and ($3::uuid is null or event_id = $3)
         ), dropped as (
             delete from relay_parked
             where source = $1 and seq = $2 and event_id in (select event_id from candidate)
                 and ($3::uuid is not null
                     or (select count(*) from candidate) = 1
                         and (select behind_seq from candidate) is null)
             returning *
         ), stored as (
             insert into relay_dead_letters (source, {COLUMNS}, error)
             select source, {COLUMNS}, '{DROPPED}' || coalesce(error, 'it was parked behind a rejected event')
             from dropped
             on conflict (source, seq, event_id) do update set error = excluded.error
         )
         select event_id, behind_seq, (select count(*) from dropped) from candidate order by 1"
    );
    let params: [&(dyn ToSql + Sync); 3] = [&source, &seq, &event_id];
    let candidates = session.query(&sql, &params).await?;
    Ok(match &*candidates {
        [] => DropOutcome::NotFound,
        [one] if one.get::<_, i64>(2) == 1 => DropOutcome::Dropped,
        [one] => DropOutcome::NotRejected {
            event_id: one.get(0),
            behind_seq: one.get::<_, Option<i64>>(1).unwrap_or(seq),
        },
        several => DropOutcome::Ambiguous(several.iter().map(|row| row.get(0)).collect()),
    })
}
