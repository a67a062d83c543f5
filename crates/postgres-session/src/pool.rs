//! A pool of sessions for diesel that detects silent ones before a caller gets them.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use diesel_async::{
    AsyncPgConnection, SimpleAsyncConnection as _, pooled_connection::PoolableConnection as _,
};
use parking_lot::Mutex;

use crate::{ConnectError, DatabaseUrl, SessionOptions, connect_diesel};

/// A session that was used less than this ago is given out without a ping, which costs a round trip.
const PING_AFTER: Duration = Duration::from_secs(1);
/// The limit on the response to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// A pool of sessions. It opens them on demand.
#[derive(Clone)]
pub struct Pool {
    sessions: managed::Pool<Sessions>,
    wait_timeout: Duration,
}

/// A session of a [`Pool`], which gets it back when this is dropped.
pub struct PooledSession(Object<Sessions>);

/// The pool has no session to give out.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A new session could not be opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// All sessions are in use.
    #[error("all {sessions} sessions of the pool were in use for {waited:?}")]
    Exhausted {
        /// The size of the pool.
        sessions: usize,
        /// The limit on the wait.
        waited: Duration,
    },
}

/// Opens sessions, and checks them before they are used again.
struct Sessions {
    url: DatabaseUrl,
    options: SessionOptions,
    /// The last time at which a session did not respond. The others were probably open to the same silent peer.
    silent_at: Mutex<Option<Instant>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool")
            .field(&self.sessions.status())
            .finish()
    }
}

impl Pool {
    /// Creates a pool of at most `max_size` sessions. A caller waits at most `wait_timeout` for one.
    ///
    /// # Panics
    /// Never: the pool has the runtime that its timeouts need.
    pub fn new(
        url: DatabaseUrl,
        options: SessionOptions,
        max_size: usize,
        wait_timeout: Duration,
    ) -> Self {
        let manager = Sessions {
            url,
            options,
            silent_at: Mutex::new(None),
        };
        let sessions = managed::Pool::builder(manager)
            .max_size(max_size)
            .wait_timeout(Some(wait_timeout))
            .runtime(deadpool::Runtime::Tokio1)
            .build();
        Self {
            sessions: sessions.unwrap_or_else(|err| unreachable!("{err}")),
            wait_timeout,
        }
    }

    /// Returns a session that is not in use.
    ///
    /// # Errors
    /// If all sessions stay in use, or a new one can't be opened.
    pub async fn get(&self) -> Result<PooledSession, PoolError> {
        match self.sessions.get().await {
            Ok(session) => Ok(PooledSession(session)),
            Err(managed::PoolError::Backend(err)) => Err(err.into()),
            Err(_) => Err(PoolError::Exhausted {
                sessions: self.sessions.status().max_size,
                waited: self.wait_timeout,
            }),
        }
    }
}

impl PooledSession {
    /// Closes the session instead of returning it, because the state of its last statement is unknown.
    pub fn discard(self) {
        drop(Object::take(self.0));
    }
}

impl managed::Manager for Sessions {
    type Type = AsyncPgConnection;
    type Error = ConnectError;

    async fn create(&self) -> Result<AsyncPgConnection, ConnectError> {
        connect_diesel(&self.url, &self.options).await
    }

    async fn recycle(
        &self,
        session: &mut AsyncPgConnection,
        metrics: &Metrics,
    ) -> RecycleResult<ConnectError> {
        if session.is_broken() {
            return Err(RecycleError::message("closed, or in a transaction"));
        }
        let idle_for = metrics.last_used();
        if idle_for < PING_AFTER {
            return Ok(());
        }
        if self
            .silent_at
            .lock()
            .is_some_and(|at| at.elapsed() < idle_for)
        {
            return Err(RecycleError::message("another session did not respond"));
        }
        match tokio::time::timeout(PING_TIMEOUT, session.batch_execute("select")).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(err)) => Err(RecycleError::message(err.to_string())),
            Err(_) => {
                *self.silent_at.lock() = Some(Instant::now());
                Err(RecycleError::message("no response"))
            }
        }
    }
}

impl Deref for PooledSession {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.0
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.0
    }
}
