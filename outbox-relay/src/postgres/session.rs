//! Postgres sessions. All connections of the relay are opened here.

mod encryption;

use std::{error::Error, time::Duration};

use tokio_postgres::{
    Client, Row,
    error::SqlState,
    types::{ToSql, Type},
};

use self::encryption::MakeRustlsConnect;
use crate::{
    config::DatabaseUrl,
    hints,
    tls::{self, Settings},
};

/// The `statement_timeout`, and the time after which an unacknowledged packet closes the connection.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The client-side timeout of a call: a server can accept a connection and then stall.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const SETTINGS: Settings = Settings {
    ca: "sslrootcert in the database's URL",
    address: "the host in the database's URL",
    identity: "sslcert and sslkey in the database's URL",
};

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
    /// Postgres did not respond in time.
    #[error("the database did not respond within {0:?}")]
    Timeout(Duration),
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
            Self::Timeout(_) => hints::SILENT_POSTGRES,
        }
    }

    /// Returns the SQLSTATE if Postgres reported the error.
    pub(crate) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Failed(source) | Self::Rejected { source, .. } => source.code(),
            Self::Url(_) | Self::Timeout(_) => None,
        }
    }
}

/// A session with a timeout for each call. Don't use the session after a timeout: the state of the statement is
/// unknown.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    timeout: Duration,
}

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Session {
    /// Sets the timeout of later calls. `statement_timeout` becomes one second less.
    pub(crate) async fn set_timeout(&mut self, timeout: Duration) -> Result<(), DatabaseError> {
        let sql = format!(
            "set statement_timeout = {}",
            timeout.saturating_sub(Duration::from_secs(1)).as_millis()
        );
        self.batch_execute(&sql).await?;
        self.timeout = timeout;
        Ok(())
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

    /// Executes a statement in one round trip, because its parameter types are given.
    pub(crate) async fn execute_typed(
        &self,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<u64, DatabaseError> {
        self.with_timeout(self.client.execute_typed(sql, params))
            .await
    }

    pub(crate) async fn batch_execute(&self, sql: &str) -> Result<(), DatabaseError> {
        self.with_timeout(self.client.batch_execute(sql)).await
    }

    /// Returns true if the connection is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Returns the client, which has no timeouts.
    pub(crate) fn into_client(self) -> Client {
        self.client
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

/// Opens a session that detects a dead peer within seconds. Reads the URL and the files that it names again.
pub(crate) async fn connect(
    database_url: &DatabaseUrl,
    application_name: &str,
) -> Result<Session, DatabaseError> {
    // On the heap, because the future of a handshake is larger than those that await it.
    let connecting = Box::pin(connect_client(database_url, application_name));
    let result = tokio::time::timeout(ANSWER_TIMEOUT, connecting).await;
    let client = result.unwrap_or(Err(DatabaseError::Timeout(ANSWER_TIMEOUT)))?;
    Ok(Session {
        client,
        timeout: ANSWER_TIMEOUT,
    })
}

async fn connect_client(
    database_url: &DatabaseUrl,
    application_name: &str,
) -> Result<Client, DatabaseError> {
    let mut target = database_url.read().map_err(DatabaseError::Url)?;
    let tls = target.files.load(target.verification);
    let tls = tls.map_err(|err| DatabaseError::Url(err.to_string()))?;
    target
        .config
        .application_name(application_name)
        .connect_timeout(ANSWER_TIMEOUT)
        .tcp_user_timeout(STATEMENT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(2))
        .keepalives_retries(3);
    let connecting = target.config.connect(MakeRustlsConnect::new(tls));
    let (client, connection) = connecting.await.map_err(with_hint)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "Postgres connection failed");
        }
    });
    // Overrides the defaults of the role and of the database.
    let settings = format!(
        "set statement_timeout = {};
         set synchronous_commit = on;
         set default_transaction_read_only = off;
         set default_transaction_isolation = 'read committed';
         set row_security = off;
         set quote_all_identifiers = off",
        STATEMENT_TIMEOUT.as_millis(),
    );
    client.batch_execute(&settings).await.map_err(with_hint)?;
    Ok(client)
}

fn with_hint(source: tokio_postgres::Error) -> DatabaseError {
    match connection_hint(&source) {
        Some(hint) => DatabaseError::Rejected { hint, source },
        None => DatabaseError::Failed(source),
    }
}

/// Returns a hint for errors of TLS and of the authentication method.
fn connection_hint(err: &tokio_postgres::Error) -> Option<String> {
    if let Some(rejection) = err.as_db_error() {
        if *rejection.code() != SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
            return None;
        }
        let message = rejection.message();
        let is_about = |words| message.contains(words);
        if is_about("no encryption") {
            return Some("set sslmode=verify-full in database_url".into());
        }
        let requires_certificate = is_about("valid client certificate");
        return requires_certificate.then(|| format!("set {}", SETTINGS.identity));
    }
    let mut cause: &(dyn Error + 'static) = err;
    while let Some(next) = cause.source() {
        cause = next;
        if let Some(hint) = tls::hint_for(cause, &SETTINGS) {
            return Some(hint);
        }
    }
    let is_without_tls = cause.to_string() == "server does not support TLS";
    is_without_tls
        .then(|| "set ssl = on in postgresql.conf, or change sslmode in database_url".into())
}
