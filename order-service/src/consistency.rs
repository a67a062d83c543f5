//! Read-your-writes consistency: waits until `users_cache` holds a user version that the caller has seen.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};
use uuid::Uuid;

use crate::{error::Error, store::Store, subscribers::Subscribers};

/// The polling interval of a waiting call. Notifications come only from this replica's projection, but
/// another replica may apply the event.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// For the version of a consistency token.
    pub token: Duration,
    /// For an unknown user.
    pub unknown_user: Duration,
}

/// Waits for user versions; the projection notifies it.
#[derive(Debug)]
pub struct UserWaiter {
    subscribers: Arc<Subscribers>,
    permits: Semaphore,
}

impl UserWaiter {
    /// Lets at most `max_waiters` calls wait; further calls check once and do not wait.
    pub fn new(subscribers: Arc<Subscribers>, max_waiters: usize) -> Self {
        Self {
            subscribers,
            permits: Semaphore::new(max_waiters),
        }
    }

    /// Waits until `users_cache` holds `version` of a user or a later one. Returns false at
    /// `deadline`, and immediately if too many calls are waiting.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn wait_for_version(
        &self,
        store: &Store,
        user_id: Uuid,
        version: i64,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let is_cached = async || {
            let user = store.load_cached_user(user_id).await?;
            Ok::<_, Error>(user.is_some_and(|user| user.version >= version))
        };
        if is_cached().await? {
            return Ok(true);
        }
        let Ok(_permit) = self.permits.try_acquire() else {
            return Ok(false);
        };
        let subscription = self.subscribers.subscribe(user_id);
        loop {
            let mut notified = std::pin::pin!(subscription.notified());
            // Enable before the check, so that no update between the check and the wait is missed.
            notified.as_mut().enable();
            if is_cached().await? {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(false);
            }
            let _ = tokio::time::timeout_at(deadline.min(now + POLL_INTERVAL), notified).await;
        }
    }
}
