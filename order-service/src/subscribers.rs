//! Wakes calls that wait for something about a user.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

/// The calls that wait, by the user whom they wait for.
#[derive(Debug, Default)]
pub struct Subscribers {
    by_user: Mutex<HashMap<Uuid, Waiting>>,
}

/// Those who wait for one user.
#[derive(Debug, Default)]
struct Waiting {
    notify: Arc<Notify>,
    calls: usize,
}

impl Subscribers {
    /// Wakes those who wait for this user.
    pub fn wake(&self, user_id: Uuid) {
        if let Some(waiting) = self.by_user.lock().get(&user_id) {
            waiting.notify.notify_waiters();
        }
    }

    /// Has this call woken, as long as the entry is kept.
    pub fn listen(self: &Arc<Self>, user_id: Uuid) -> Listener {
        let mut by_user = self.by_user.lock();
        let waiting = by_user.entry(user_id).or_default();
        waiting.calls += 1;
        Listener {
            subscribers: Arc::clone(self),
            user_id,
            notify: Arc::clone(&waiting.notify),
        }
    }
}

/// A call's entry, taken away with the call however it ends.
#[derive(Debug)]
pub struct Listener {
    subscribers: Arc<Subscribers>,
    user_id: Uuid,
    notify: Arc<Notify>,
}

impl Listener {
    /// What is notified when the user's calls are woken. Enable it before looking at what is waited
    /// for: then nothing is missed in between.
    pub fn notify(&self) -> &Notify {
        &self.notify
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut by_user = self.subscribers.by_user.lock();
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
        let subscribers = Arc::new(Subscribers::default());
        let (first, second) = (
            subscribers.listen(Uuid::nil()),
            subscribers.listen(Uuid::nil()),
        );
        drop(first);
        assert_eq!(subscribers.by_user.lock().len(), 1);
        drop(second);
        assert_eq!(subscribers.by_user.lock().len(), 0);
    }
}
