use diesel::QueryResult;
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, TransactionManager};

use crate::{event::Event, schema::outbox};

/// The limit on rows per statement, far below the 65,535 parameters that Postgres permits.
const MAX_ROWS: usize = 1_000;

/// Writes `event` in the current transaction of `conn`. The event is published if and only if that transaction commits.
///
/// Call it after the statement that changes the aggregate. The row lock orders the events of transactions that change the
/// same row by their commits.
///
/// # Errors
/// [`NotInTransaction`](diesel::result::Error::NotInTransaction) outside of a transaction, where the event could be published
/// without its change. Otherwise the database's error.
pub async fn enqueue(conn: &mut AsyncPgConnection, event: &Event) -> QueryResult<()> {
    require_transaction(conn)?;
    // A single row, because diesel caches this prepared statement, but not one for several rows.
    diesel::insert_into(outbox::table)
        .values(event)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes `events` in their order, like [`enqueue`].
///
/// # Errors
/// As [`enqueue`].
pub async fn enqueue_all(conn: &mut AsyncPgConnection, events: &[Event]) -> QueryResult<()> {
    require_transaction(conn)?;
    for events in events.chunks(MAX_ROWS) {
        diesel::insert_into(outbox::table)
            .values(events)
            .execute(conn)
            .await?;
    }
    Ok(())
}

fn require_transaction(conn: &mut AsyncPgConnection) -> QueryResult<()> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    match status.transaction_depth()? {
        Some(_) => Ok(()),
        None => Err(diesel::result::Error::NotInTransaction),
    }
}
