use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use clap::Args;
use cli::number;
use diesel_async::AsyncPgConnection;
use postgres_session::PooledSession;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::{DatabaseOptions, Pool, create_pool};
use crate::{CallError, TokenKey};

/// Limits on the calls that use the database.
#[derive(Args, Clone, Debug)]
pub struct PoolOptions {
    /// Open at most this many database connections for calls. Raise it only if Postgres has idle cores: further
    /// statements queue there
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value = "16", value_parser = number(1..=1_000_usize))]
    database_pool_size: usize,
    /// Let at most this many calls use the database or wait for a connection; further calls are rejected
    /// with OVERLOADED. Raise it if calls are rejected while Postgres is idle
    #[arg(long, env = "MAX_CALLS", default_value = "256", value_parser = number(1..=100_000_usize))]
    max_calls: usize,
}

impl PoolOptions {
    /// Creates the connection pool and its limit.
    pub fn open(&self, program: &'static str, database: &DatabaseOptions) -> Database {
        let pool = create_pool(program, database.url(), self.database_pool_size);
        Database::new(pool, self.max_calls)
    }
}

/// The database, with a limit on the calls that use it or wait for a connection, across all clients.
///
/// The limit is here and not in the server because calls that wait for events hold no database
/// connection (docs/adr/0016), and because tonic's own limits apply to each client connection.
/// A call beyond the limit is rejected at once: a longer queue would only delay every call.
#[derive(Clone)]
pub struct Database {
    pool: Pool,
    permits: Arc<Semaphore>,
    token_key: Arc<OnceCell<TokenKey>>,
    detached_tasks: TaskTracker,
}

/// A pooled connection and its permit.
pub struct Connection {
    conn: PooledSession,
    _permit: OwnedSemaphorePermit,
}

impl Database {
    /// Limits `pool` to `max_calls` calls that use or wait for a connection.
    pub fn new(pool: Pool, max_calls: usize) -> Self {
        Self {
            pool,
            permits: Arc::new(Semaphore::new(max_calls)),
            token_key: Arc::default(),
            detached_tasks: TaskTracker::new(),
        }
    }

    /// Returns the tracker of detached tasks, which continue after their callers have disconnected.
    pub fn detached_tasks(&self) -> TaskTracker {
        self.detached_tasks.clone()
    }

    /// Runs `work` as a detached task, which completes even if the caller disconnects.
    ///
    /// # Panics
    /// If `work` does.
    pub(crate) async fn run_to_completion<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match self.detached_tasks.spawn(work).await {
            Ok(result) => result,
            Err(err) => match err.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down and drops this task.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Returns a connection. Calls that write use
    /// [`run_idempotent_transaction`](Self::run_idempotent_transaction), which takes one itself.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] at the limit, or if the database fails.
    pub async fn connection(&self) -> Result<Connection, CallError> {
        let permit = Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| CallError::Overloaded)?;
        Ok(Connection {
            conn: self.pool.get().await?,
            _permit: permit,
        })
    }

    /// Returns the key that signs this service's tokens.
    ///
    /// # Errors
    /// As for [`connection`](Self::connection).
    pub async fn token_key(&self) -> Result<&TokenKey, CallError> {
        let load = async || {
            let key = TokenKey::load(&mut *self.connection().await?).await;
            key.map_err(CallError::Database)
        };
        self.token_key.get_or_try_init(load).await
    }
}

impl Connection {
    /// Closes the session, because the state of its transaction is unknown.
    pub(crate) fn discard(self) {
        self.conn.discard();
    }
}

impl Deref for Connection {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.conn
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.conn
    }
}
