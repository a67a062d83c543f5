//! Postgres connections and migrations.

mod limited;
mod migrations;

use std::{path::Path, time::Duration};

use clap::Args;
use cli::read_secret;
use diesel::{ConnectionError, result::DatabaseErrorKind};
use diesel_async::{
    AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _,
    pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod},
};
use secrecy::{ExposeSecret as _, SecretString};

pub use self::{
    limited::{Connection, Database, PoolOptions},
    migrations::{migrate, probe},
};
pub use diesel_async::pooled_connection::deadpool::PoolError;

/// A pool of connections.
pub type Pool = diesel_async::pooled_connection::deadpool::Pool<AsyncPgConnection>;
/// A connection of a [`Pool`].
pub type PooledConnection = diesel_async::pooled_connection::deadpool::Object<AsyncPgConnection>;

/// The time limit of a call waiting for a pooled connection. Then the call fails with
/// DATABASE_UNAVAILABLE; a longer wait would only keep calls in memory.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Run on every new connection: limits every statement, lock wait and idle transaction.
const SESSION_SETTINGS: &str = "set statement_timeout = '10s';
    set lock_timeout = '5s';
    set idle_in_transaction_session_timeout = '15s'";

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
    database_url: Option<SecretString>,
    /// Read the database address from this file instead, for example a mounted secret
    #[arg(long, env = "DATABASE_URL_FILE", value_parser = read_database_url)]
    database_url_file: Option<SecretString>,
}

impl DatabaseOptions {
    /// Returns the URL.
    ///
    /// # Panics
    /// Never: clap requires one of the two.
    pub fn url(&self) -> &SecretString {
        let url = self
            .database_url
            .as_ref()
            .or(self.database_url_file.as_ref());
        url.unwrap_or_else(|| unreachable!("clap requires one of the two"))
    }
}

fn parse_database_url(text: &str) -> Result<SecretString, &'static str> {
    validate_url(text)?;
    Ok(text.into())
}

fn read_database_url(file: &str) -> Result<SecretString, String> {
    let url = read_secret(Path::new(file))?;
    validate_url(url.expose_secret())
        .map_err(|reason| format!("invalid database address in {file}: {reason}"))?;
    Ok(url)
}

/// Reports an error without the value and the parser's message: both may contain a password.
fn validate_url(url: &str) -> Result<(), &'static str> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("must begin with postgres://");
    }
    let config: tokio_postgres::Config = url.parse().map_err(|_| {
        "must be a valid URL; in a password, percent-encode @ : / ? # % as %40 %3A %2F %3F %23 %25"
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err("must name a host, as in postgres://user:password@host:5432/name");
    }
    Ok(())
}

/// Creates a pool of at most `max_size` connections, which it opens on demand.
///
/// # Panics
/// Never: the pool has the runtime that its timeouts need.
pub fn create_pool(url: &SecretString, max_size: usize) -> Pool {
    let mut config = ManagerConfig::default();
    // Detects a closed connection without a round trip.
    config.recycling_method = RecyclingMethod::Fast;
    config.custom_setup = Box::new(|url| Box::pin(connect(url)));
    let manager = AsyncDieselConnectionManager::new_with_config(url.expose_secret(), config);
    Pool::builder(manager)
        .max_size(max_size)
        .wait_timeout(Some(WAIT_TIMEOUT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .unwrap_or_else(|err| unreachable!("{err}"))
}

/// Opens one connection, for a short-lived command.
///
/// # Errors
/// If the database can't be reached.
pub async fn connect_once(url: &SecretString) -> Result<AsyncPgConnection, ConnectionError> {
    connect(url.expose_secret()).await
}

async fn connect(url: &str) -> Result<AsyncPgConnection, ConnectionError> {
    let mut conn = AsyncPgConnection::establish(url).await?;
    conn.batch_execute(SESSION_SETTINGS)
        .await
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
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

impl From<diesel::result::Error> for DatabaseError {
    fn from(err: diesel::result::Error) -> Self {
        use diesel::result::Error;
        let unavailable = match &err {
            Error::DatabaseError(kind, info) => match kind {
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand
                // A standby: passes once a primary takes over or the standby is promoted.
                | DatabaseErrorKind::ReadOnlyTransaction => true,
                // diesel drops the SQLSTATE of these, so only the text is left: a shutdown, a
                // session terminated by an administrator, one of our timeouts, a deadlock.
                DatabaseErrorKind::Unknown => [
                    "terminating connection",
                    "canceling statement",
                    "deadlock detected",
                ]
                .iter()
                .any(|text| info.message().starts_with(text)),
                _ => false,
            },
            Error::BrokenTransactionManager => true,
            _ => false,
        };
        if unavailable {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_database_url_is_rejected() {
        for valid in [
            "postgres://a:b@localhost:5432/c",
            "postgresql://a@[::1]/c?connect_timeout=1",
            "postgres://a:%40%2F@localhost",
        ] {
            assert_eq!(validate_url(valid), Ok(()), "{valid}");
        }
        for bad in [
            "",
            "mysql://a@b/c",
            "host=localhost",
            "postgres://",
            "postgres:///c",
            "postgres://a@b:port/c",
            "postgres://a@b:99999/c",
            "postgres://%ff@b/c",
            "postgres://a@b/c?what=ever",
        ] {
            assert!(validate_url(bad).is_err(), "{bad}");
        }
    }
}
