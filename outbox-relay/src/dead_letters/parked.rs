//! The operator's commands for parked keys.

use uuid::Uuid;

use super::storage::{self, DropOutcome, ParkedKey};
use crate::{
    config::SourceConfig,
    postgres::session::{self, DatabaseError, Session},
};

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
        storage::list(&self.session, &self.source).await
    }

    /// Asks the leading relay to retry a key, or all of them. Returns how many.
    ///
    /// # Errors
    /// If the update fails.
    pub async fn retry(&self, key: Option<&str>) -> Result<u64, DatabaseError> {
        storage::retry(&self.session, &self.source, key).await
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
        storage::drop_event(&self.session, &self.source, seq, event_id).await
    }
}
