//! Limits on the time that the consumer waits for the database.

use std::time::Duration;

use diesel::QueryResult;
use diesel_async::AsyncPgConnection;
use postgres_session::SqlState;

use crate::handle::{ABANDON_AFTER_SHUTDOWN, Shared};

/// The limit for a pooled connection, which may have to be opened.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The limit between two reports of progress. A transaction takes milliseconds, or a few seconds while a rebuild swaps
/// its tables.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(20);
const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Connection(String),
    #[error("no response from the database within {} s", STALL_LIMIT.as_secs())]
    Stalled,
    #[error("the shutdown interrupted the transaction")]
    Shutdown,
    #[error(transparent)]
    Query(#[from] diesel::result::Error),
}

impl Error {
    /// Returns whether a smaller transaction can succeed, because a limit on time has passed.
    pub(crate) fn is_timeout(&self) -> bool {
        match self {
            Self::Stalled => true,
            Self::Query(err) => postgres_session::sqlstate(err) == Some(SqlState::QUERY_CANCELED),
            Self::Connection(_) | Self::Shutdown => false,
        }
    }
}

/// Runs `query` on a pooled session. Gives up when the consumer has reported no progress for [`STALL_LIMIT`]: each statement
/// has a limit of its own, but a transaction has several.
pub(crate) async fn run<T>(
    shared: &Shared,
    query: impl AsyncFnOnce(&mut AsyncPgConnection) -> QueryResult<T>,
) -> Result<T, Error> {
    let mut conn = tokio::select! {
        conn = tokio::time::timeout(CONNECT_LIMIT, shared.pool.get()) => match conn {
            Ok(conn) => conn.map_err(|err| Error::Connection(err.to_string()))?,
            Err(_) => {
                let limit = CONNECT_LIMIT.as_secs();
                let reason = format!("no connection to the database within {limit} s");
                return Err(Error::Connection(reason));
            }
        },
        () = shared.shutdown.cancelled() => return Err(Error::Shutdown),
    };
    let error = tokio::select! {
        result = query(&mut conn) => return Ok(result?),
        () = wait_for_stall(shared) => Error::Stalled,
        () = wait_for_abandonment(shared) => Error::Shutdown,
    };
    // It is in a transaction, or in the middle of a response.
    conn.discard();
    Err(error)
}

async fn wait_for_stall(shared: &Shared) {
    while shared.progress.activity_age() < STALL_LIMIT {
        tokio::time::sleep(STALL_CHECK_INTERVAL).await;
    }
}

async fn wait_for_abandonment(shared: &Shared) {
    shared.shutdown.cancelled().await;
    tokio::time::sleep(ABANDON_AFTER_SHUTDOWN).await;
}

/// Limits a short statement of another thread than the consumer's.
pub(crate) async fn limit<T>(
    statement: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout(CONNECT_LIMIT, statement).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "no response from the database within {} s",
            CONNECT_LIMIT.as_secs()
        )),
    }
}
