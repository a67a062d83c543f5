//! What an operator can see of parked keys, and do about them.

use tokio_postgres::Client;

use crate::{
    aside::{COLUMNS, DROPPED},
    config::SourceConfig,
    session::{self, DatabaseError},
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
    client: Client,
    source: String,
}

impl Parked {
    /// Connects to the source's database.
    ///
    /// # Errors
    /// If it can't be reached.
    pub async fn of(source: &SourceConfig) -> Result<Self, DatabaseError> {
        Ok(Self {
            client: session::connect(&source.database_url, "outbox-relay parked").await?,
            source: source.name.clone(),
        })
    }

    /// The parked keys, the oldest first. There are never many more than a thousand.
    ///
    /// # Errors
    /// The database's.
    pub async fn list(&self) -> Result<Vec<ParkedKey>, tokio_postgres::Error> {
        let sql = "select topic, key, min(seq), (array_agg(error order by seq))[1], count(*),
                       bool_or(retry)
                   from relay_parked where source = $1 group by topic, key order by min(seq)";
        let rows = self.client.query(sql, &[&self.source]).await?;
        let parked = rows.iter().map(|row| ParkedKey {
            topic: row.get(0),
            key: row.get(1),
            refused_seq: row.get(2),
            error: row.get::<_, Option<String>>(3).unwrap_or_default(),
            events: row.get(4),
            retry: row.get(5),
        });
        Ok(parked.collect())
    }

    /// Asks the relay that leads to try a key again, or all of them; returns how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn retry(&self, key: Option<&str>) -> Result<u64, tokio_postgres::Error> {
        let sql = "update relay_parked set retry = true
                   where source = $1 and ($2::text is null or key = $2) and error is not null";
        self.client.execute(sql, &[&self.source, &key]).await
    }

    /// Moves a parked event among the dead letters; those behind it follow by themselves. Returns
    /// whether there was such an event, and no other dead letter in its place.
    ///
    /// # Errors
    /// The database's.
    pub async fn drop_event(&self, seq: i64) -> Result<bool, tokio_postgres::Error> {
        let sql = format!(
            "with dropped as (
                 delete from relay_parked as parked
                 where source = $1 and seq = $2 and not exists (
                     select from relay_dead_letters as letter
                     where letter.source = parked.source and letter.seq = parked.seq
                         and letter.event_id <> parked.event_id
                 ) returning *
             )
             insert into relay_dead_letters (source, {COLUMNS}, error)
             select source, {COLUMNS}, '{DROPPED}' || coalesce(error, 'it waited')
             from dropped
             on conflict (source, seq) do update set error = excluded.error"
        );
        Ok(self.client.execute(&sql, &[&self.source, &seq]).await? > 0)
    }
}
