//! Waits until this service has heard of what a caller has already seen.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};
use uuid::Uuid;

use crate::{error::Error, store::Store, subscribers::Subscribers};

/// How often a waiter looks by itself, should it not be woken: another replica's projection may be
/// the one that applies the event.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long a call waits for an event, at most.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// For the version that a consistency token names.
    pub token: Duration,
    /// For a user of whom nothing was heard, without a token.
    pub unknown_user: Duration,
}

/// The calls that wait for a user's version; the projection wakes them.
#[derive(Debug)]
pub struct Waiters {
    subscribers: Arc<Subscribers>,
    places: Semaphore,
}

impl Waiters {
    /// Room for `max_waiters` calls; more than that are told at once that the version is not here.
    pub fn new(subscribers: Arc<Subscribers>, max_waiters: usize) -> Self {
        Self {
            subscribers,
            places: Semaphore::new(max_waiters),
        }
    }

    /// Whether `users_cache` holds `version` of a user, or a later one, by `deadline`.
    ///
    /// # Errors
    /// The database's.
    pub async fn wait_for(
        &self,
        store: &Store,
        user_id: Uuid,
        version: i64,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let is_here = async || {
            let user = store.cached_user(user_id).await?;
            Ok::<_, Error>(user.is_some_and(|user| user.version >= version))
        };
        if is_here().await? {
            return Ok(true);
        }
        let Ok(_place) = self.places.try_acquire() else {
            return Ok(false);
        };
        let listener = self.subscribers.listen(user_id);
        loop {
            let mut arrived = std::pin::pin!(listener.notify().notified());
            // From here on no arrival is missed; one before is seen by the look that follows.
            arrived.as_mut().enable();
            if is_here().await? {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(false);
            }
            let _ = tokio::time::timeout_at(deadline.min(now + POLL_INTERVAL), arrived).await;
        }
    }
}
