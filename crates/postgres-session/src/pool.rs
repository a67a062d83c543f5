//! A pool of sessions for diesel that detects silent and read-only ones before a caller gets them.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
use diesel_async::{
    AsyncPgConnection, RunQueryDsl as _, pooled_connection::PoolableConnection as _,
};
use parking_lot::Mutex;

use crate::{ConnectError, DatabaseUrl, SessionOptions, connect_diesel};

/// A session that was verified less than this ago is given out again without a round trip.
const VERIFIED_FOR: Duration = Duration::from_secs(1);
/// The limit on the response.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(1);
/// The age at which a read-only session is replaced: the server may have been demoted, or its address moved to another one.
const MAX_READ_ONLY_AGE: Duration = Duration::from_secs(5);

const READ_ACCESS: &str =
    "select current_setting('transaction_read_only')::boolean as is_read_only";

/// A pool of sessions. It opens them on demand.
#[derive(Clone)]
pub struct Pool {
    sessions: managed::Pool<Sessions>,
    wait_timeout: Duration,
}

/// A session of a [`Pool`], which gets it back when this is dropped.
pub struct PooledSession(Object<Sessions>);

/// A session, and the last time at which the server responded as expected.
struct VerifiedSession {
    session: AsyncPgConnection,
    verified_at: Instant,
}

#[derive(diesel::QueryableByName)]
struct Access {
    #[diesel(sql_type = diesel::sql_types::Bool)]
    is_read_only: bool,
}

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
    type Type = VerifiedSession;
    type Error = ConnectError;

    async fn create(&self) -> Result<VerifiedSession, ConnectError> {
        let session = connect_diesel(&self.url, &self.options).await?;
        Ok(VerifiedSession {
            session,
            verified_at: Instant::now(),
        })
    }

    async fn recycle(
        &self,
        verified: &mut VerifiedSession,
        metrics: &Metrics,
    ) -> RecycleResult<ConnectError> {
        if verified.session.is_broken() {
            return Err(RecycleError::message("closed, or in a transaction"));
        }
        let age = verified.verified_at.elapsed();
        if age < VERIFIED_FOR {
            return Ok(());
        }
        if self.silent_at.lock().is_some_and(|at| at.elapsed() < age) {
            return Err(RecycleError::message("another session did not respond"));
        }
        let access = diesel::sql_query(READ_ACCESS).get_result(&mut verified.session);
        match tokio::time::timeout(VERIFY_TIMEOUT, access).await {
            Ok(Ok(Access { is_read_only: true })) if metrics.age() > MAX_READ_ONLY_AGE => {
                Err(RecycleError::message("read-only"))
            }
            Ok(Ok(Access { .. })) => {
                verified.verified_at = Instant::now();
                Ok(())
            }
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
        &self.0.session
    }
}

impl DerefMut for PooledSession {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.0.session
    }
}
