//! In-process notifications of changes, by user.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};
use uuid::Uuid;

/// The subscriptions of calls, by user.
#[derive(Debug, Default)]
pub struct Subscribers {
    by_user: Mutex<HashMap<Uuid, Entry>>,
}

/// The subscriptions to one user.
#[derive(Debug, Default)]
struct Entry {
    notify: Arc<Notify>,
    subscriptions: usize,
}

impl Subscribers {
    /// Notifies the subscriptions to this user.
    pub fn notify(&self, user_id: Uuid) {
        if let Some(entry) = self.by_user.lock().get(&user_id) {
            entry.notify.notify_waiters();
        }
    }

    /// Subscribes to this user until the subscription is dropped.
    pub fn subscribe(self: &Arc<Self>, user_id: Uuid) -> Subscription {
        let mut by_user = self.by_user.lock();
        let entry = by_user.entry(user_id).or_default();
        entry.subscriptions += 1;
        Subscription {
            subscribers: Arc::clone(self),
            user_id,
            notify: Arc::clone(&entry.notify),
        }
    }
}

/// A subscription to one user, removed on drop.
#[derive(Debug)]
pub struct Subscription {
    subscribers: Arc<Subscribers>,
    user_id: Uuid,
    notify: Arc<Notify>,
}

impl Subscription {
    /// Returns a future that completes at the next notification. Enable it before checking the awaited
    /// state, so that no notification in between is missed.
    pub fn notified(&self) -> Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut by_user = self.subscribers.by_user.lock();
        if let Some(entry) = by_user.get_mut(&self.user_id) {
            entry.subscriptions -= 1;
            if entry.subscriptions == 0 {
                by_user.remove(&self.user_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_removed_with_its_last_subscription() {
        let subscribers = Arc::new(Subscribers::default());
        let (first, second) = (
            subscribers.subscribe(Uuid::nil()),
            subscribers.subscribe(Uuid::nil()),
        );
        drop(first);
        assert_eq!(subscribers.by_user.lock().len(), 1);
        drop(second);
        assert_eq!(subscribers.by_user.lock().len(), 0);
    }
}
