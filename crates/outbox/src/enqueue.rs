use diesel::QueryResult;
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, TransactionManager};

use crate::{event::Event, schema::outbox};

/// Rows of one statement at most, far below the 65,535 values that Postgres takes.
const MAX_ROWS: usize = 1_000;

/// Writes `event` as part of the transaction that `conn` is in: it will be published if and only if
/// that transaction commits.
///
/// Call it after the statement that changes the aggregate. Two transactions that change the same
/// row then draw their event's number one after the other, in the order in which they commit.
///
/// # Errors
/// [`NotInTransaction`](diesel::result::Error::NotInTransaction) outside of a transaction, where
/// the event could exist without the change that it tells of; otherwise the database's error.
pub async fn enqueue(conn: &mut AsyncPgConnection, event: &Event) -> QueryResult<()> {
    check_transaction(conn)?;
    // One row by itself, because diesel prepares this statement once and that of several each time.
    diesel::insert_into(outbox::table)
        .values(event)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes `events`, in their order, as [`enqueue`] does one.
///
/// # Errors
/// As of [`enqueue`].
pub async fn enqueue_all(conn: &mut AsyncPgConnection, events: &[Event]) -> QueryResult<()> {
    check_transaction(conn)?;
    for events in events.chunks(MAX_ROWS) {
        diesel::insert_into(outbox::table)
            .values(events)
            .execute(conn)
            .await?;
    }
    Ok(())
}

fn check_transaction(conn: &mut AsyncPgConnection) -> QueryResult<()> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(conn);
    match status.transaction_depth()? {
        Some(_) => Ok(()),
        None => Err(diesel::result::Error::NotInTransaction),
    }
}
