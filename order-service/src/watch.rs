//! WatchOrders: streams the changes of a user's orders.
//!
//! Each stream has a task that polls for changes and sends them to a short queue. It polls when this
//! process changes an order of the user, and periodically, because another replica may have changed
//! one. Notifications only reduce latency: the next poll finds any missed change.

use std::{sync::Arc, time::Duration};

use service_kit::CallError;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::Order,
    error::Error,
    store::{Changes, Position, Store},
    subscribers::Subscribers,
};

/// The polling interval of a stream without notifications.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum number of orders per poll.
const PAGE_ORDERS: usize = 100;
/// The maximum number of queued orders, besides the page being sent.
const QUEUE_ORDERS: usize = 16;
/// The maximum number of concurrent polls, each with its own connection. An order triggers a poll of
/// every stream of its user; the limit keeps these polls and the calls from starving each other.
pub const MAX_CONCURRENT_POLLS: usize = 4;
/// Limits the age of a stream, so that callers reconnect and spread over new replicas.
const MAX_AGE: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    pub max_watches: usize,
    /// The time limit for sending to a full queue.
    pub send_timeout: Duration,
}

/// Opens and limits streams.
pub struct Watches {
    store: Store,
    order_subscribers: Arc<Subscribers>,
    stream_permits: Arc<Semaphore>,
    poll_permits: Arc<Semaphore>,
    send_timeout: Duration,
    shutdown: CancellationToken,
}

/// A new or changed order, and the position after it.
pub type Change = (Order, Position);

/// The receiving side of a stream.
pub struct Watch {
    changes: mpsc::Receiver<Change>,
    end: oneshot::Receiver<Error>,
}

impl Watch {
    /// Returns the next change, then the reason for the end of the stream, then `None`.
    pub async fn next(&mut self) -> Option<Result<Change, Error>> {
        match self.changes.recv().await {
            Some(change) => Some(Ok(change)),
            None => (&mut self.end).await.ok().map(Err),
        }
    }
}

impl Watches {
    /// Creates streams over `store`, which must allow [`MAX_CONCURRENT_POLLS`] calls. `order_subscribers`
    /// notifies of changes by this process.
    pub fn new(
        store: Store,
        order_subscribers: Arc<Subscribers>,
        limits: WatchLimits,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            store,
            order_subscribers,
            stream_permits: Arc::new(Semaphore::new(limits.max_watches)),
            poll_permits: Arc::new(Semaphore::new(MAX_CONCURRENT_POLLS)),
            send_timeout: limits.send_timeout,
            shutdown,
        }
    }

    /// Opens a stream of a user's orders from `position`, until `deadline` at the latest.
    ///
    /// # Errors
    /// If the maximum number of streams is open.
    pub fn open(
        &self,
        user_id: Uuid,
        position: Position,
        deadline: Option<Instant>,
    ) -> Result<Watch, Error> {
        let permit = Arc::clone(&self.stream_permits).try_acquire_owned();
        let permit = permit.map_err(|_| CallError::Overloaded)?;
        let (queue, changes) = mpsc::channel(QUEUE_ORDERS);
        let (end_sender, end) = oneshot::channel();
        let max_age = Instant::now() + MAX_AGE;
        let has_caller_deadline = deadline.is_some_and(|deadline| deadline < max_age);
        let task = WatchTask {
            store: self.store.clone(),
            poll_permits: Arc::clone(&self.poll_permits),
            subscribers: Arc::clone(&self.order_subscribers),
            user_id,
            send_timeout: self.send_timeout,
            end: deadline.filter(|_| has_caller_deadline).unwrap_or(max_age),
            end_reason: if has_caller_deadline {
                || CallError::DeadlineExceeded.into()
            } else {
                || Error::WatchEnded
            },
            shutdown: self.shutdown.clone(),
            queue,
            _permit: permit,
        };
        tokio::spawn(async move {
            // Ignore a caller that has disconnected.
            let _ = end_sender.send(task.run(position).await);
        });
        Ok(Watch { changes, end })
    }
}

struct WatchTask {
    store: Store,
    poll_permits: Arc<Semaphore>,
    subscribers: Arc<Subscribers>,
    user_id: Uuid,
    send_timeout: Duration,
    end: Instant,
    end_reason: fn() -> Error,
    shutdown: CancellationToken,
    queue: mpsc::Sender<Change>,
    _permit: OwnedSemaphorePermit,
}

impl WatchTask {
    /// Sends changes until the stream ends, and returns the reason.
    async fn run(self, mut position: Position) -> Error {
        let subscription = self.subscribers.subscribe(self.user_id);
        loop {
            let mut notified = std::pin::pin!(subscription.notified());
            // Enable before the poll, so that no change between the poll and the wait is missed.
            notified.as_mut().enable();
            let changes = match self.poll_changes(&position).await {
                Ok(changes) => changes,
                Err(err) => return err,
            };
            for change in changes.orders {
                match timeout(self.send_timeout, self.queue.send(change)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Error::WatchEnded,
                    Err(_) => return Error::WatchTooSlow,
                }
            }
            position = changes.position;
            if self.shutdown.is_cancelled() {
                return Error::WatchEnded;
            }
            if Instant::now() >= self.end {
                return (self.end_reason)();
            }
            if !changes.is_complete {
                continue;
            }
            tokio::select! {
                () = notified => {}
                () = sleep(POLL_INTERVAL) => {}
                () = self.shutdown.cancelled() => return Error::WatchEnded,
                () = sleep_until(self.end) => return (self.end_reason)(),
                () = self.queue.closed() => return Error::WatchEnded,
            }
        }
    }

    /// Reads the next changes, within the limit on concurrent polls.
    async fn poll_changes(&self, position: &Position) -> Result<Changes, Error> {
        let _permit = self
            .poll_permits
            .acquire()
            .await
            .map_err(CallError::internal)?;
        let changes = self
            .store
            .changes_since(self.user_id, position, PAGE_ORDERS);
        changes.await
    }
}
