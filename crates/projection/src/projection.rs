use diesel::QueryResult;
use diesel_async::AsyncPgConnection;

use crate::{Poison, Record};

/// A read model built from the records of a topic.
pub trait Projection: Send + Sync + 'static {
    /// The change that one record makes.
    type Change: Send + Sync;

    /// Decodes a record that has a payload. Returns `None` for a record that this projection skips.
    ///
    /// # Errors
    /// [`Poison`] if the record cannot be decoded. The record is then dead-lettered.
    fn decode(&self, record: &Record<'_>) -> Result<Option<Self::Change>, Poison>;

    /// Decodes a tombstone: a record with a null value, which says that its key has ended. Returns `None` to skip it.
    ///
    /// A tombstone is never poison. Kafka tools write it without headers, so only the key is certain; a key that
    /// belongs to nothing has nothing to delete.
    fn decode_tombstone(&self, tombstone: &Record<'_>) -> Option<Self::Change>;

    /// Applies changes in the order of their records, inside a transaction.
    ///
    /// A replay delivers records again, and compaction leaves gaps in the versions of a key.
    /// Overwrite a row only with a newer version.
    ///
    /// # Errors
    /// Database errors. If a constraint or a column type rejects a change, its record is
    /// dead-lettered. All other errors are retried.
    fn apply(
        &self,
        conn: &mut AsyncPgConnection,
        changes: &[Self::Change],
    ) -> impl Future<Output = QueryResult<()>> + Send;

    /// Runs right after the transaction that applied `changes` was committed.
    fn after_commit(&self, changes: &[Self::Change]) {
        let _ = changes;
    }
}
