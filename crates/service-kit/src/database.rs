//! Connections to Postgres, and the schema behind them.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use diesel::{
    ConnectionError,
    migration::{Migration, MigrationSource},
    pg::Pg,
    result::DatabaseErrorKind,
};
use diesel_async::{
    AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl as _,
    SimpleAsyncConnection as _,
    pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _};
use program::Problems;
use secrecy::{ExposeSecret as _, SecretString};

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

/// Serialises migrations of several replicas that start at once.
const MIGRATION_LOCK: &str = "select pg_advisory_lock(hashtextextended('schema migrations', 0))";

/// Where the database is.
#[derive(Args, Clone, Debug)]
pub struct DatabaseOptions {
    /// The address of the service's own database, as postgres://user:password@host:5432/name
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// A file that holds the address, instead
    #[arg(long, env = "DATABASE_URL_FILE")]
    database_url_file: Option<PathBuf>,
}

impl DatabaseOptions {
    /// The URL, or a note of what is wrong with it.
    pub fn check(self, problems: &mut Problems) -> Option<SecretString> {
        let url = problems.secret("DATABASE_URL", self.database_url, self.database_url_file)?;
        if url.expose_secret().starts_with("postgres://")
            || url.expose_secret().starts_with("postgresql://")
        {
            return Some(url);
        }
        // Without the value: it may hold a password.
        problems.add("DATABASE_URL", "must begin with postgres://");
        None
    }
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
    #[error("the database refused a statement")]
    Failed(#[source] diesel::result::Error),
}

impl From<diesel::result::Error> for DatabaseError {
    fn from(err: diesel::result::Error) -> Self {
        use diesel::result::Error;
        let unavailable = match &err {
            Error::DatabaseError(kind, info) => match kind {
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
                    true
                }
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

/// Brings the schema up to date: runs, in order, what of `migrations` was not run yet. Returns the
/// names of those that were.
///
/// # Errors
/// If the database can't be reached or a migration fails, which is then rolled back.
pub async fn migrate(
    url: &SecretString,
    migrations: &[EmbeddedMigrations],
) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    let mut conn = AsyncPgConnection::establish(url.expose_secret()).await?;
    conn.batch_execute(MIGRATION_LOCK).await?;
    // The connection, and the lock with it, ends with this function.
    let mut harness = AsyncMigrationHarness::new(conn);
    let mut names = Vec::new();
    for source in migrations {
        let versions = harness.run_pending_migrations(Borrowed(source))?;
        names.extend(versions.iter().map(ToString::to_string));
    }
    Ok(names)
}

/// Whether the database answers and has every migration.
///
/// # Errors
/// What is wrong, for a person to read.
pub async fn probe(pool: &Pool, migrations: &[EmbeddedMigrations]) -> Result<(), String> {
    let mut conn = pool
        .get()
        .await
        .map_err(|err| format!("no connection: {err}"))?;
    let applied: Vec<Version> = diesel::sql_query("select version from __diesel_schema_migrations")
        .load(&mut conn)
        .await
        .map_err(|err| format!("no schema ({err}): run the subcommand migrate"))?;
    for source in migrations {
        for migration in Borrowed(source)
            .migrations()
            .map_err(|err| err.to_string())?
        {
            let version = migration.name().version().to_string();
            if !applied.iter().any(|row| row.version == version) {
                return Err(format!(
                    "{} is missing: run the subcommand migrate",
                    migration.name()
                ));
            }
        }
    }
    Ok(())
}

/// diesel takes migrations by value and can't clone them.
struct Borrowed<'a>(&'a EmbeddedMigrations);

impl MigrationSource<Pg> for Borrowed<'_> {
    fn migrations(&self) -> diesel::migration::Result<Vec<Box<dyn Migration<Pg>>>> {
        self.0.migrations()
    }
}

#[derive(diesel::QueryableByName)]
struct Version {
    #[diesel(sql_type = diesel::sql_types::Text)]
    version: String,
}
