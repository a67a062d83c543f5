//! What an operator can see of parked keys, and do about them.

use uuid::Uuid;

use super::storage;
use crate::{
    config::SourceConfig,
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

/// What came of dropping an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// There is no such event.
    None,
    /// It is a dead letter now.
    One,
    /// It is not the one that was refused, but waits behind that; it was not dropped.
    Waits {
        /// Its id, with which it would be.
        event_id: Uuid,
        /// The seq of the first event of its key.
        behind_seq: i64,
    },
    /// These events share its seq; none was dropped.
    Ambiguous(Vec<Uuid>),
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
        storage::list(&self.session, &self.source).await
    }

    /// Asks the relay that leads to try a key again, or all of them; returns how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn retry(&self, key: Option<&str>) -> Result<u64, DatabaseError> {
        storage::retry(&self.session, &self.source, key).await
    }

    /// Moves a parked event among the dead letters; those behind it follow by themselves. Without its id it has to be the
    /// one of its key that was refused, and the only one with that seq.
    ///
    /// # Errors
    /// The database's.
    pub async fn drop_event(
        &self,
        seq: i64,
        event_id: Option<Uuid>,
    ) -> Result<Dropped, DatabaseError> {
        storage::drop_event(&self.session, &self.source, seq, event_id).await
    }
}
