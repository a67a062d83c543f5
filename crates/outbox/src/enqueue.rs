use diesel::QueryResult;
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, TransactionManager};

use crate::{event::Event, schema::outbox};

/// Writes `event` as part of the transaction that `conn` is in: it will be shipped if and only if
/// that transaction commits.
///
/// Call it after the statement that changes the aggregate. Two transactions that change the same
/// row then draw their event's number one after the other, in the order in which they commit.
///
/// # Errors
/// [`NotInTransaction`](diesel::result::Error::NotInTransaction) outside of a transaction, where
/// the event could exist without the change that it tells of; otherwise the database's error.
pub async fn enqueue(conn: &mut AsyncPgConnection, event: &Event) -> QueryResult<()> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    if status.transaction_depth()?.is_none() {
        return Err(diesel::result::Error::NotInTransaction);
    }
    diesel::insert_into(outbox::table)
        .values(event)
        .execute(conn)
        .await?;
    Ok(())
}
