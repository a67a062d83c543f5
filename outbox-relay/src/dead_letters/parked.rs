//! What an operator can see of parked keys, and do about them.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::{
    config::SourceConfig,
    dead_letters::aside::{COLUMNS, DROPPED},
    postgres::session::{self, DatabaseError, Session},
};

/// A parked key, for an operator.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ParkedKey {
    /// The topic of its events.
    pub topic: String,
    /// The key.
    pub key: String,
    /// The seq of the event that was refused.
    pub refused_seq: i64,
    /// Its id.
    pub refused_event_id: Uuid,
    /// Why it was.
    pub error: String,
    /// How many events wait, that one among them.
    pub events: i64,
    /// Whether they are to be tried again.
    pub retry: bool,
}

/// What of a source is parked, for an operator. The relay need not run.
#[derive(Debug)]
pub struct Parked {
    session: Session,
    source: String,
}

impl Parked {
    /// Connects to the source's database.
    ///
    /// # Errors
    /// If it can't be reached.
    pub async fn of(source: &SourceConfig) -> Result<Self, DatabaseError> {
        Ok(Self {
            session: session::connect(&source.database_url, "outbox-relay parked").await?,
            source: source.name.clone(),
        })
    }

    /// The parked keys, the oldest first. There are never many more than a thousand.
    ///
    /// # Errors
    /// The database's.
    pub async fn list(&self) -> Result<Vec<ParkedKey>, DatabaseError> {
        let sql = "select topic, key, min(seq), (array_agg(event_id order by seq, event_id))[1],
                       (array_agg(error order by seq, event_id))[1], count(*), bool_or(retry)
                   from relay_parked where source = $1 group by topic, key order by min(seq)";
        let rows = self.session.query(sql, &[&self.source]).await?;
        let parked = rows.iter().map(|row| ParkedKey {
            topic: row.get(0),
            key: row.get(1),
            refused_seq: row.get(2),
            refused_event_id: row.get(3),
            error: row.get::<_, Option<String>>(4).unwrap_or_default(),
            events: row.get(5),
            retry: row.get(6),
        });
        Ok(parked.collect())
    }

    /// Asks the relay that leads to try a key again, or all of them; returns how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn retry(&self, key: Option<&str>) -> Result<u64, DatabaseError> {
        let sql = "update relay_parked set retry = true
                   where source = $1 and ($2::text is null or key = $2) and error is not null";
        self.session.execute(sql, &[&self.source, &key]).await
    }

    /// Moves a parked event among the dead letters; those behind it follow by themselves. `event_id` tells it from
    /// others with its seq.
    ///
    /// # Errors
    /// The database's.
    pub async fn drop_event(
        &self,
        seq: i64,
        event_id: Option<Uuid>,
    ) -> Result<Dropped, DatabaseError> {
        let sql = format!(
            "with candidate as (
                 select event_id from relay_parked
                 where source = $1 and seq = $2 and ($3::uuid is null or event_id = $3)
             ), dropped as (
                 delete from relay_parked
                 where source = $1 and seq = $2 and event_id in (select event_id from candidate)
                     and (select count(*) from candidate) = 1
                 returning *
             ), stored as (
                 insert into relay_dead_letters (source, {COLUMNS}, error)
                 select source, {COLUMNS}, '{DROPPED}' || coalesce(error, 'it waited')
                 from dropped
                 on conflict (source, seq, event_id) do update set error = excluded.error
             )
             select event_id from candidate order by 1"
        );
        let params: [&(dyn ToSql + Sync); 3] = [&self.source, &seq, &event_id];
        let candidates = self.session.query(&sql, &params).await?;
        Ok(match candidates.len() {
            0 => Dropped::None,
            1 => Dropped::One,
            _ => Dropped::Ambiguous(candidates.iter().map(|row| row.get(0)).collect()),
        })
    }
}

/// What came of dropping an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// There is no such event.
    None,
    /// It is a dead letter now.
    One,
    /// These events share its seq; none was dropped.
    Ambiguous(Vec<Uuid>),
}
