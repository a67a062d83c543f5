//! Sessions for diesel, and the SQLSTATE of its errors.

use diesel::result::{DatabaseErrorKind, Error};
use diesel_async::AsyncPgConnection;
use tokio_postgres::error::SqlState;

use crate::{
    connect::{Opened, prepare, with_timeout},
    error::ConnectError,
    error_response::PREFIX,
    options::SessionOptions,
    url::DatabaseUrl,
};

/// Opens a session for diesel, as [`connect`](crate::connect()). Its errors have a [`sqlstate`].
///
/// # Errors
/// As for [`connect`](crate::connect()).
pub async fn connect_diesel(
    url: &DatabaseUrl,
    options: &SessionOptions,
) -> Result<AsyncPgConnection, ConnectError> {
    url.ensure_tcp().map_err(ConnectError::Url)?;
    let opening = Box::pin(async {
        let Opened {
            client,
            connection,
            server,
        } = prepare(url, options).await?;
        let session = AsyncPgConnection::try_from_client_and_connection(client, connection).await;
        session.map_err(|err| ConnectError::Setup {
            address: server.address,
            cause: err.into(),
        })
    });
    with_timeout(url, options, opening).await
}

/// Returns the SQLSTATE of an error that Postgres reported on a session of [`connect_diesel`].
pub fn sqlstate(err: &Error) -> Option<SqlState> {
    let Error::DatabaseError(kind, info) = err else {
        return None;
    };
    match kind {
        DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection => None,
        _ => Some(SqlState::from_code(info.details()?.strip_prefix(PREFIX)?)),
    }
}

/// Returns whether an error is about the server or the session, so that a retry can help.
///
/// The classes are 08 (connection), 40 (rollback: serialization, deadlock), 53 (resources), 57 (cancelled, shutdown) and 58
/// (system error); of others 25006 (read-only), 25P03 and 25P04 (timeouts of a transaction) and 55P03 (lock timeout).
pub fn is_unavailable(err: &Error) -> bool {
    const STATES: [&str; 9] = [
        "08", "40", "53", "57", "58", "25006", "25P03", "25P04", "55P03",
    ];
    match err {
        Error::BrokenTransactionManager => true,
        Error::DatabaseError(
            DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection,
            _,
        ) => true,
        err => sqlstate(err)
            .is_some_and(|state| STATES.iter().any(|start| state.code().starts_with(start))),
    }
}

/// Returns whether Postgres rejects the values of a statement, so that no retry can help.
///
/// The classes are 22 (data), 23 (constraints) and 54 (program limits, such as the size of an index entry).
pub fn is_data_error(state: &SqlState) -> bool {
    ["22", "23", "54"]
        .iter()
        .any(|class| state.code().starts_with(class))
}
