//! Waits until this service has heard of what a caller has already seen.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use uuid::Uuid;

use crate::{error::Error, store::Store};

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

/// The calls that wait for a user's version, and the projection that wakes them.
#[derive(Debug)]
pub struct Waiters {
    by_user: Mutex<HashMap<Uuid, Waiting>>,
    places: Semaphore,
}

/// Those who wait for one user.
#[derive(Debug, Default)]
struct Waiting {
    arrived: Arc<Notify>,
    calls: usize,
}

impl Waiters {
    /// Room for `max_waiters` calls; more than that are told at once that the version is not here.
    pub fn new(max_waiters: usize) -> Self {
        Self {
            by_user: Mutex::default(),
            places: Semaphore::new(max_waiters),
        }
    }

    /// Wakes those who wait for this user.
    pub fn wake(&self, user_id: Uuid) {
        if let Some(waiting) = self.lock().get(&user_id) {
            waiting.arrived.notify_waiters();
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
        let call = Call::new(self, user_id);
        loop {
            let mut arrived = std::pin::pin!(call.arrived.notified());
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

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Waiting>> {
        self.by_user.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call's entry, taken away with the call however it ends.
struct Call<'a> {
    waiters: &'a Waiters,
    user_id: Uuid,
    arrived: Arc<Notify>,
}

impl<'a> Call<'a> {
    fn new(waiters: &'a Waiters, user_id: Uuid) -> Self {
        let mut by_user = waiters.lock();
        let waiting = by_user.entry(user_id).or_default();
        waiting.calls += 1;
        Self {
            waiters,
            user_id,
            arrived: Arc::clone(&waiting.arrived),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut by_user = self.waiters.lock();
        if let Some(waiting) = by_user.get_mut(&self.user_id) {
            waiting.calls -= 1;
            if waiting.calls == 0 {
                by_user.remove(&self.user_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_goes_with_its_last_call() {
        let waiters = Waiters::new(10);
        let (first, second) = (
            Call::new(&waiters, Uuid::nil()),
            Call::new(&waiters, Uuid::nil()),
        );
        drop(first);
        assert_eq!(waiters.lock().len(), 1);
        drop(second);
        assert_eq!(waiters.lock().len(), 0);
    }
}
