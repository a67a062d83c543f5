//! Connections to Postgres, and the schema behind them.

mod calls;
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
    calls::{CallConnection, CallDatabase, CallOptions},
    migrations::{migrate, probe},
};
pub use diesel_async::pooled_connection::deadpool::PoolError;

/// A pool of connections.
pub type Pool = diesel_async::pooled_connection::deadpool::Pool<AsyncPgConnection>;
/// A connection of a [`Pool`].
pub type PooledConnection = diesel_async::pooled_connection::deadpool::Object<AsyncPgConnection>;

/// How long a call waits for a connection of its own. Longer only moves the queue from the caller
/// into this process.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What every connection begins with: no statement, lock or forgotten transaction lasts for ever.
const SESSION: &str = "set statement_timeout = '10s';
    set lock_timeout = '5s';
    set idle_in_transaction_session_timeout = '15s'";

/// Where the database is.
#[derive(Args, Clone, Debug)]
pub struct DatabaseOptions {
    /// The address of the service's own database, as postgres://user:password@host:5432/name
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        required_unless_present = "database_url_file",
        conflicts_with = "database_url_file",
        value_parser = database_url
    )]
    database_url: Option<SecretString>,
    /// A file that holds the address, instead
    #[arg(long, env = "DATABASE_URL_FILE", value_parser = database_url_in_file)]
    database_url_file: Option<SecretString>,
}

impl DatabaseOptions {
    /// The URL.
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

fn database_url(text: &str) -> Result<SecretString, &'static str> {
    check_url(text)?;
    Ok(text.into())
}

fn database_url_in_file(file: &str) -> Result<SecretString, String> {
    let url = read_secret(Path::new(file))?;
    check_url(url.expose_secret()).map_err(|reason| format!("the address in {file} {reason}"))?;
    Ok(url)
}

/// Says what is wrong without the value and without the parser's words: both may hold a password.
fn check_url(url: &str) -> Result<(), &'static str> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("must begin with postgres://");
    }
    let config: tokio_postgres::Config = url.parse().map_err(|_| {
        "can't be read; in a password, write the characters @ : / ? # % as %40 %3A %2F %3F %23 %25"
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err("must name a host, as in postgres://user:password@host:5432/name");
    }
    Ok(())
}

/// A pool of at most `max_size` connections, which are opened when they are needed.
///
/// # Panics
/// Never: the pool is given the runtime that its timeouts need.
pub fn pool(url: &SecretString, max_size: usize) -> Pool {
    let mut config = ManagerConfig::default();
    // A closed connection is noticed without a round trip to the server.
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

/// One connection, for a command that is soon over.
///
/// # Errors
/// If the database can't be reached.
pub async fn connect_once(url: &SecretString) -> Result<AsyncPgConnection, ConnectionError> {
    connect(url.expose_secret()).await
}

async fn connect(url: &str) -> Result<AsyncPgConnection, ConnectionError> {
    let mut conn = AsyncPgConnection::establish(url).await?;
    conn.batch_execute(SESSION)
        .await
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

/// Why a connection or a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database can't be reached or has no connection to spare: trying again can help.
    #[error("the database can't be reached")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Everything else: a bug, here or in the schema.
    #[error("the database rejected a statement")]
    Failed(#[source] diesel::result::Error),
}

impl From<diesel::result::Error> for DatabaseError {
    fn from(err: diesel::result::Error) -> Self {
        use diesel::result::Error;
        let unavailable = match &err {
            Error::DatabaseError(kind, info) => match kind {
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand
                // A standby, until another server takes its place or it is promoted.
                | DatabaseErrorKind::ReadOnlyTransaction => true,
                // diesel keeps no SQLSTATE for these, so that only the text can tell: a shutdown,
                // a session that an administrator ended, a timeout of ours, a deadlock.
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
    fn an_address_that_no_connection_could_use_is_rejected() {
        for good in [
            "postgres://a:b@localhost:5432/c",
            "postgresql://a@[::1]/c?connect_timeout=1",
            "postgres://a:%40%2F@localhost",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
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
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
