//! What an operator can see of parked keys, and do about them.

use uuid::Uuid;

use super::storage::{self, Dropped, ParkedKey};
use crate::{
    config::SourceConfig,
    postgres::session::{self, DatabaseError, Session},
};

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
    /// one of its key that was rejected, and the only one with that seq.
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
