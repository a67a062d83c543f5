//! Postgres connections and migrations.

mod limited;
mod migrations;

use std::time::Duration;

use clap::Args;
use cli::{ConfigError, Problems, Secret};
use diesel_async::AsyncPgConnection;
use postgres_session::{ConnectError, DatabaseUrl, SessionOptions, connect_diesel};

pub use self::{
    limited::{Connection, Database, PoolOptions},
    migrations::{migrate, probe},
};
pub use postgres_session::{Pool, PoolError};

/// The time limit of a call waiting for a pooled session. Then the call fails with
/// DATABASE_UNAVAILABLE; a longer wait would only keep calls in memory.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest wait of a command for the next byte of a response: more than the `statement_timeout` of a rebuild, 60 s.
const COMMAND_RESPONSE_TIMEOUT: Duration = Duration::from_secs(70);

/// The address of the database.
#[derive(Args, Clone, Debug)]
pub struct DatabaseOptions {
    /// Connect to this service's database, as postgres://user:password@host:5432/name; required unless
    /// DATABASE_URL_FILE is set
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        required_unless_present = "database_url_file",
        conflicts_with = "database_url_file",
        value_parser = parse_database_url
    )]
    database_url: Option<DatabaseUrl>,
    /// Read the database address from this file instead, for example a mounted secret; it is read again for each connection
    #[arg(long, env = "DATABASE_URL_FILE", value_parser = parse_database_url_file)]
    database_url_file: Option<DatabaseUrl>,
}

impl DatabaseOptions {
    /// Returns the URL.
    ///
    /// # Panics
    /// Never: clap requires one of the two.
    pub fn url(&self) -> &DatabaseUrl {
        let url = self
            .database_url
            .as_ref()
            .or(self.database_url_file.as_ref());
        url.unwrap_or_else(|| unreachable!("clap requires one of the two"))
    }
}

fn parse_database_url(text: &str) -> Result<DatabaseUrl, String> {
    validated(DatabaseUrl::from(text))
}

fn parse_database_url_file(file: &str) -> Result<DatabaseUrl, String> {
    validated(DatabaseUrl::from(Secret::File(file.into())))
}

fn validated(url: DatabaseUrl) -> Result<DatabaseUrl, String> {
    url.validate()?;
    url.ensure_tcp()?;
    Ok(url)
}

/// Creates a pool of at most `max_size` sessions, which it opens on demand.
pub fn create_pool(program: &'static str, url: &DatabaseUrl, max_size: usize) -> Pool {
    Pool::new(
        url.clone(),
        SessionOptions::for_service(program),
        max_size,
        WAIT_TIMEOUT,
    )
}

/// Opens one session, for a short-lived command.
///
/// # Errors
/// If the database can't be reached or does not accept the session.
pub async fn connect_once(
    program: &'static str,
    url: &DatabaseUrl,
) -> Result<AsyncPgConnection, ConnectError> {
    let options = SessionOptions {
        response_timeout: Some(COMMAND_RESPONSE_TIMEOUT),
        ..SessionOptions::for_service(program)
    };
    connect_diesel(url, &options).await
}

/// Rejects a URL that leads to a connection pooler in transaction mode. An unavailable database is accepted.
///
/// # Errors
/// The description of the pooler, as an invalid configuration.
pub(crate) async fn reject_transaction_pooler(
    program: &'static str,
    url: &DatabaseUrl,
) -> Result<(), ConfigError> {
    match connect_once(program, url).await {
        Err(err @ ConnectError::TransactionPooler { .. }) => {
            let mut problems = Problems::default();
            problems.add("DATABASE_URL", err);
            Err(problems.into_error())
        }
        _ => Ok(()),
    }
}

/// A failure of a connection or a statement.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database is unreachable or out of connections; a retry can help.
    #[error("database unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Any other failure: a bug in the service or its schema.
    #[error("database statement failed")]
    Failed(#[source] diesel::result::Error),
}

impl DatabaseError {
    /// A transaction did not end within its limit. Its outcome is unknown.
    pub(crate) fn transaction_timeout(limit: Duration) -> Self {
        Self::Unavailable(format!("transaction did not end within {limit:?}").into())
    }
}

impl From<diesel::result::Error> for DatabaseError {
    fn from(err: diesel::result::Error) -> Self {
        if postgres_session::is_unavailable(&err) {
            Self::Unavailable(err.into())
        } else {
            Self::Failed(err)
        }
    }
}

impl From<PoolError> for DatabaseError {
    fn from(err: PoolError) -> Self {
        Self::Unavailable(err.into())
    }
}
