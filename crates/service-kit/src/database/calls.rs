use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use clap::Args;
use cli::number;
use diesel_async::AsyncPgConnection;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::{DatabaseOptions, Pool, PooledConnection, pool};
use crate::{CallError, TokenKey};

/// How many calls may use the database.
#[derive(Args, Clone, Debug)]
pub struct CallOptions {
    /// Connections to the database at most; more than its cores can use only queue there
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value = "16", value_parser = number(1..=1_000_usize))]
    database_pool_size: usize,
    /// Calls that may use the database or wait for it at once; others are told at once to come later
    #[arg(long, env = "MAX_CALLS", default_value = "256", value_parser = number(1..=100_000_usize))]
    max_calls: usize,
}

impl CallOptions {
    /// Opens the database for calls.
    pub fn open(&self, database: &DatabaseOptions) -> CallDatabase {
        let pool = pool(database.url(), self.database_pool_size);
        CallDatabase::new(pool, self.max_calls)
    }
}

/// The database as calls see it: with a limit on those that use it or wait for it, over all
/// connections of all clients. It is here and not at the door, because calls that wait for events hold
/// no connection (docs/adr/0016).
///
/// Beyond the limit a call is rejected at once. A queue before the database only makes everybody
/// late: what comes faster than it can be done has to go elsewhere, or come later. (tonic's own
/// limits count for each client's connection.)
#[derive(Clone)]
pub struct CallDatabase {
    pool: Pool,
    places: Arc<Semaphore>,
    token_key: Arc<OnceCell<TokenKey>>,
    writes: TaskTracker,
}

/// A connection, and its place among the calls that may have or want one.
pub struct CallConnection {
    conn: PooledConnection,
    _place: OwnedSemaphorePermit,
}

impl CallDatabase {
    /// Room for `max_calls` calls, of which as many work at a time as `pool` has connections.
    pub fn new(pool: Pool, max_calls: usize) -> Self {
        Self {
            pool,
            places: Arc::new(Semaphore::new(max_calls)),
            token_key: Arc::default(),
            writes: TaskTracker::new(),
        }
    }

    /// The writes that go on, whether or not their callers are still there.
    pub fn writes(&self) -> TaskTracker {
        self.writes.clone()
    }

    /// Runs `write` to its end even when the caller goes away in the middle of it.
    ///
    /// # Panics
    /// If `write` does.
    pub(crate) async fn run_to_completion<T: Send + 'static>(
        &self,
        write: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match self.writes.spawn(write).await {
            Ok(result) => result,
            Err(err) => match err.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// A connection for one call that reads; a write goes through [`mutate`](Self::mutate).
    ///
    /// # Errors
    /// [`CallError::Overloaded`] if there is no room, or the database's.
    pub async fn get(&self) -> Result<CallConnection, CallError> {
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| CallError::Overloaded)?;
        Ok(CallConnection {
            conn: self.pool.get().await?,
            _place: place,
        })
    }

    /// The key of this service's tokens.
    ///
    /// # Errors
    /// As of [`get`](Self::get).
    pub async fn token_key(&self) -> Result<&TokenKey, CallError> {
        let load = async || {
            let key = TokenKey::load(&mut *self.get().await?).await;
            key.map_err(CallError::Database)
        };
        self.token_key.get_or_try_init(load).await
    }
}

impl Deref for CallConnection {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.conn
    }
}

impl DerefMut for CallConnection {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.conn
    }
}
