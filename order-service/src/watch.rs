//! Follows a user's orders for a caller of WatchOrders.
//!
//! A stream has a task that reads changes and hands them over a short queue. It reads when this
//! process has written something of the user's, and now and then by itself, because another replica
//! may have. Whatever it misses it finds with the next look, so that waking is for speed only.

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

/// How often a stream looks by itself.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Orders of one look at most.
const PAGE_ORDERS: usize = 100;
/// Orders that wait for the caller to read them at most, beside one page that is being handed over.
const QUEUE_ORDERS: usize = 16;
/// Looks at once, each over a connection of its own: an order wakes all who follow its user, and these
/// are neither to crowd out the calls nor to be crowded out by them.
pub const MAX_LOOKS: usize = 4;
/// A stream is renewed after so long, so that callers spread over new replicas.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Limits of the streams.
#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    /// Streams at once, at most.
    pub max_watches: usize,
    /// How long a caller may leave a full queue unread.
    pub patience: Duration,
}

/// The streams of WatchOrders.
pub struct Watches {
    store: Store,
    changes: Arc<Subscribers>,
    places: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    patience: Duration,
    shutdown: CancellationToken,
}

/// An order that was placed or changed, and where to go on behind it.
pub type Change = (Order, Position);

/// What a caller reads.
pub struct Watch {
    changes: mpsc::Receiver<Change>,
    end: oneshot::Receiver<Error>,
}

impl Watch {
    /// The next change, or why there is none any more; none after that.
    pub async fn next(&mut self) -> Option<Result<Change, Error>> {
        match self.changes.recv().await {
            Some(change) => Some(Ok(change)),
            None => (&mut self.end).await.ok().map(Err),
        }
    }
}

impl Watches {
    /// Streams of what `store` holds, which has room for [`MAX_LOOKS`] calls; `changes` tells of users
    /// whose orders were changed here.
    pub fn new(
        store: Store,
        changes: Arc<Subscribers>,
        limits: WatchLimits,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            store,
            changes,
            places: Arc::new(Semaphore::new(limits.max_watches)),
            looks: Arc::new(Semaphore::new(MAX_LOOKS)),
            patience: limits.patience,
            shutdown,
        }
    }

    /// Follows a user's orders from `position` on, until `deadline` at the latest.
    ///
    /// # Errors
    /// If there are too many streams.
    pub fn start(
        &self,
        user_id: Uuid,
        position: Position,
        deadline: Option<Instant>,
    ) -> Result<Watch, Error> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| CallError::Overloaded)?;
        let (queue, changes) = mpsc::channel(QUEUE_ORDERS);
        let (end_with, end) = oneshot::channel();
        let max_age = Instant::now() + MAX_AGE;
        let is_callers = deadline.is_some_and(|deadline| deadline < max_age);
        let task = Task {
            store: self.store.clone(),
            looks: Arc::clone(&self.looks),
            subscribers: Arc::clone(&self.changes),
            user_id,
            patience: self.patience,
            end: deadline.filter(|_| is_callers).unwrap_or(max_age),
            at_end: if is_callers {
                || CallError::DeadlineExceeded.into()
            } else {
                || Error::WatchEnded
            },
            shutdown: self.shutdown.clone(),
            queue,
            _place: place,
        };
        tokio::spawn(async move {
            // A caller that has left does not want to know.
            let _ = end_with.send(task.follow(position).await);
        });
        Ok(Watch { changes, end })
    }
}

struct Task {
    store: Store,
    looks: Arc<Semaphore>,
    subscribers: Arc<Subscribers>,
    user_id: Uuid,
    patience: Duration,
    end: Instant,
    at_end: fn() -> Error,
    shutdown: CancellationToken,
    queue: mpsc::Sender<Change>,
    _place: OwnedSemaphorePermit,
}

impl Task {
    /// Hands changes over until something ends it, and says what.
    async fn follow(self, mut position: Position) -> Error {
        let listener = self.subscribers.listen(self.user_id);
        loop {
            let mut woken = std::pin::pin!(listener.notify().notified());
            // What changes from here on wakes; what did before is seen by the look that follows.
            woken.as_mut().enable();
            let changes = match self.look(&position).await {
                Ok(changes) => changes,
                Err(err) => return err,
            };
            for change in changes.orders {
                match timeout(self.patience, self.queue.send(change)).await {
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
                return (self.at_end)();
            }
            if !changes.is_all {
                continue;
            }
            tokio::select! {
                () = woken => {}
                () = sleep(POLL_INTERVAL) => {}
                () = self.shutdown.cancelled() => return Error::WatchEnded,
                () = sleep_until(self.end) => return (self.at_end)(),
                () = self.queue.closed() => return Error::WatchEnded,
            }
        }
    }

    /// What has changed, when it is this stream's turn to look.
    async fn look(&self, position: &Position) -> Result<Changes, Error> {
        let _turn = self.looks.acquire().await.map_err(CallError::bug)?;
        let changes = self.store.changes(self.user_id, position, PAGE_ORDERS);
        changes.await
    }
}
