use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use diesel_async::AsyncPgConnection;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use super::{Pool, PooledConnection};
use crate::{call_error::CallError, token_key::TokenKey};

/// The database as calls see it: with a limit on those that use it or wait for it, over all
/// connections of all clients. It is here and not at the door, because calls that wait for events hold
/// no connection (docs/adr/0016).
///
/// Beyond the limit a call is refused at once. A queue before the database only makes everybody
/// late: what comes faster than it can be done has to go elsewhere, or come later. (tonic's own
/// limits count for each client's connection.)
#[derive(Clone)]
pub struct CallDatabase {
    pool: Pool,
    places: Arc<Semaphore>,
    token_key: Arc<OnceCell<TokenKey>>,
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
        }
    }

    /// A connection for one call.
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
