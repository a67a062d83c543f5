//! Postgres sessions. All connections of the relay are opened here.

use std::time::Duration;

use postgres_session::{ConnectError, DatabaseUrl, SessionOptions};
use tokio_postgres::{Client, Row, error::SqlState};

use crate::{
    hints,
    postgres::statements::{Params, PreparingClient},
};

/// The `statement_timeout`.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The client-side timeout of a call: a server can accept a connection and then stall.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// An error of a database call.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The connection failed, or Postgres rejected the statement.
    #[error("{}: {}", describe_failure(.0), cause_of(.0))]
    Failed(tokio_postgres::Error),
    /// The connection failed for a reason with a specific hint.
    #[error("failed to connect to the database; {hint}")]
    Rejected {
        /// The hint.
        hint: String,
        /// The cause.
        source: tokio_postgres::Error,
    },
    /// The URL, or a file that it names, is unusable.
    #[error("invalid database URL: {0}")]
    Url(String),
    /// The address leads to another database than when this relay became the leader.
    #[error(
        "the database URL leads to another database than when this relay became the leader of the source"
    )]
    Moved,
    /// Postgres did not respond in time.
    #[error("the database did not respond within {0:?}")]
    Timeout(Duration),
    /// A pooler in transaction mode.
    #[error(transparent)]
    Pooler(ConnectError),
}

impl From<ConnectError> for DatabaseError {
    fn from(err: ConnectError) -> Self {
        match err {
            ConnectError::Url(reason) => Self::Url(reason),
            ConnectError::Failed {
                cause,
                hint: Some(hint),
                ..
            } => Self::Rejected {
                hint,
                source: cause,
            },
            ConnectError::Failed { cause, .. } => Self::Failed(cause),
            ConnectError::Timeout { timeout, .. } => Self::Timeout(timeout),
            err => Self::Pooler(err),
        }
    }
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(err: tokio_postgres::Error) -> Self {
        Self::Failed(err)
    }
}

impl DatabaseError {
    /// Returns advice for the operator.
    pub(crate) fn hint(&self) -> &str {
        match self {
            Self::Failed(err) => hints::for_postgres(err),
            Self::Rejected { hint, .. } => hint,
            Self::Url(_) => hints::DATABASE_URL,
            Self::Moved => hints::MOVED,
            Self::Timeout(_) => hints::SILENT_POSTGRES,
            Self::Pooler(_) => hints::POOLER,
        }
    }

    /// Returns the SQLSTATE if Postgres reported the error.
    pub(crate) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Failed(source) | Self::Rejected { source, .. } => source.code(),
            Self::Url(_) | Self::Moved | Self::Timeout(_) | Self::Pooler(_) => None,
        }
    }
}

/// A session with a timeout for each call. Don't use the session after a timeout: the state of the statement is
/// unknown.
#[derive(Debug)]
pub(crate) struct Session {
    client: PreparingClient,
    timeout: Duration,
}

impl Session {
    /// Sets the timeout of later calls. `statement_timeout` becomes one second less.
    pub(crate) async fn set_timeout(&mut self, timeout: Duration) -> Result<(), DatabaseError> {
        let statement_timeout = timeout.saturating_sub(Duration::from_secs(1)).as_millis();
        self.apply_settings(&[("statement_timeout", statement_timeout.to_string())])
            .await?;
        self.timeout = timeout;
        Ok(())
    }

    /// Changes settings of the session.
    pub(crate) async fn apply_settings(
        &self,
        settings: &[(&str, impl AsRef<str> + Sync)],
    ) -> Result<(), DatabaseError> {
        let client = self.client.client();
        self.with_timeout(postgres_session::apply_settings(client, settings))
            .await
    }

    pub(crate) async fn query(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, DatabaseError> {
        self.with_timeout(self.client.query(sql, params)).await
    }

    pub(crate) async fn query_one(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Row, DatabaseError> {
        self.with_timeout(self.client.query_one(sql, params)).await
    }

    pub(crate) async fn query_opt(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, DatabaseError> {
        self.with_timeout(self.client.query_opt(sql, params)).await
    }

    pub(crate) async fn execute(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<u64, DatabaseError> {
        self.with_timeout(self.client.execute(sql, params)).await
    }

    /// Executes a statement that can't be prepared because it commits.
    pub(crate) async fn batch_execute(&self, sql: &str) -> Result<(), DatabaseError> {
        self.with_timeout(self.client.client().batch_execute(sql))
            .await
    }

    /// Returns true if the connection is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.client().is_closed()
    }

    /// Returns the client, which has no timeouts.
    pub(crate) fn into_client(self) -> Client {
        self.client.into_client()
    }

    async fn with_timeout<T>(
        &self,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DatabaseError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(DatabaseError::Timeout(self.timeout)),
        }
    }
}

/// Returns the cause of an error without Postgres' DETAIL, which can contain the values of a row.
pub(crate) fn cause_of(err: &tokio_postgres::Error) -> String {
    err.as_db_error().map_or_else(
        || cli::chain(err),
        |err| format!("{}: {}", err.severity(), err.message()),
    )
}

/// Distinguishes a failed connection from a failed statement: Postgres' own message does not.
fn describe_failure(err: &tokio_postgres::Error) -> &'static str {
    // Classes 08 (connection), 28 (authorization), 3D (no such database), 57P (shutdown or startup), and
    // too_many_connections.
    const NO_SESSION: [&str; 5] = ["08", "28", "3D", "53300", "57P"];
    let code = err.code().map_or("08", SqlState::code);
    if NO_SESSION.iter().any(|class| code.starts_with(class)) {
        "failed to connect to the database"
    } else {
        "the database rejected a statement"
    }
}

/// Opens a session. Reads the URL and the files that it names again.
pub(crate) async fn connect(
    database_url: &DatabaseUrl,
    application_name: &'static str,
) -> Result<Session, DatabaseError> {
    let options = SessionOptions {
        application_name,
        connect_timeout: ANSWER_TIMEOUT,
        statement_timeout: STATEMENT_TIMEOUT,
        lock_timeout: Duration::ZERO,
        idle_in_transaction_timeout: Duration::ZERO,
        forces_writes: true,
        response_timeout: None,
    };
    let client = postgres_session::connect(database_url, &options).await?;
    Ok(Session {
        client: PreparingClient::new(client),
        timeout: ANSWER_TIMEOUT,
    })
}
