use diesel::QueryResult;
use diesel_async::AsyncPgConnection;

use crate::{Poison, Record};

/// What a consumer makes of the records of a topic.
pub trait Projection: Send + Sync + 'static {
    /// What one record changes.
    type Change: Send + Sync;

    /// Reads a record; `None` means that it is of no concern here.
    ///
    /// # Errors
    /// [`Poison`] if the record can't be understood. It then becomes a dead letter.
    fn decode(&self, record: &Record<'_>) -> Result<Option<Self::Change>, Poison>;

    /// Applies changes, in the order of their records, inside of a transaction.
    ///
    /// Records come again after a replay, and the versions of a key may have gaps, because
    /// compaction removes what was overwritten: let a row win only over an older version of itself.
    ///
    /// # Errors
    /// The database's. Where a constraint or a column's type rejects a change, the record is set
    /// aside; everything else is tried again.
    fn apply(
        &self,
        conn: &mut AsyncPgConnection,
        changes: &[Self::Change],
    ) -> impl Future<Output = QueryResult<()>> + Send;

    /// Is told of changes right after their transaction was committed.
    fn applied(&self, changes: &[Self::Change]) {
        let _ = changes;
    }
}
