use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::SinkError;
use crate::status::{Histogram, Latency};

/// The records that are on their way: shared by the task that sends and checkpoints, and the
/// client's thread that learns of deliveries.
#[derive(Clone, Debug)]
pub struct InFlight(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Records that may be in flight at once.
    capacity: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    failure: Mutex<Option<SinkError>>,
    /// How long records take, where somebody wants to know.
    latency: OnceLock<Latency>,
    /// Told upon the first failure, when a good part of the room is free again, and when nothing is
    /// in flight any more. Not upon every delivery: a sender that is woken for a single place is
    /// asleep again at once.
    changed: Notify,
}

impl Inner {
    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }
}

impl InFlight {
    /// Room for `capacity` records.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Inner {
            capacity: AtomicU64::new(capacity.max(1) as u64),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            failure: Mutex::new(None),
            latency: OnceLock::new(),
            changed: Notify::new(),
        }))
    }

    /// How many records were sent.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Acquire)
    }

    /// How many records, from the first, are acknowledged without a gap.
    pub fn acknowledged(&self) -> u64 {
        self.0.acknowledged.load(Ordering::Acquire)
    }

    /// Why the sink is of no use any more, once it is.
    ///
    /// # Errors
    /// That reason.
    pub fn check(&self) -> Result<(), SinkError> {
        self.failure().clone().map_or(Ok(()), Err)
    }

    /// Whether no record more may be sent now.
    pub(super) fn is_full(&self) -> bool {
        self.sent().saturating_sub(self.acknowledged()) >= self.0.capacity()
    }

    /// From now on so many records may be in flight, if that is more than until now.
    pub(crate) fn allow(&self, capacity: usize) {
        self.0.capacity.fetch_max(capacity as u64, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }

    /// Whether everything sent is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.sent() == self.acknowledged()
    }

    /// Waits until a record more may be sent.
    ///
    /// # Errors
    /// When the sink fails meanwhile.
    pub(super) async fn wait_for_room(&self) -> Result<(), SinkError> {
        self.wait_until(|inner, in_flight| in_flight < inner.capacity())
            .await
    }

    /// Waits until everything sent is acknowledged.
    ///
    /// # Errors
    /// When the sink fails meanwhile.
    pub async fn wait_until_empty(&self) -> Result<(), SinkError> {
        self.wait_until(|_, in_flight| in_flight == 0).await
    }

    /// Waits until the sink fails.
    pub async fn failed(&self) -> SinkError {
        loop {
            if let Err(err) = self.wait_until(|_, _| false).await {
                return err;
            }
        }
    }

    /// Counts in `histogram` how long the records take of which [`expect`](Self::expect) is told.
    pub(crate) fn measure(&self, histogram: Arc<Histogram>) {
        // Once for each sink.
        let _ = self.0.latency.set(Latency::new(histogram));
    }

    /// The next record was created then, and stands for so many when it is acknowledged.
    pub(crate) fn expect(&self, created_at_us: i64, weight: u64) {
        if let Some(latency) = self.0.latency.get() {
            latency.expect(self.sent(), created_at_us, weight);
        }
    }

    /// That record was not taken.
    pub(crate) fn forget_expected(&self) {
        if let Some(latency) = self.0.latency.get() {
            latency.forget(self.sent());
        }
    }

    /// Takes the number of the next record.
    pub(super) fn begin(&self) -> u64 {
        self.0.sent.fetch_add(1, Ordering::AcqRel)
    }

    /// Gives the last number back: its record was not taken after all.
    pub(super) fn take_back(&self) {
        self.0.sent.fetch_sub(1, Ordering::AcqRel);
    }

    /// All records below this number are acknowledged.
    pub(super) fn acknowledge_up_to(&self, acknowledged: u64) {
        let before = self
            .0
            .acknowledged
            .fetch_max(acknowledged, Ordering::AcqRel);
        if let Some(latency) = self.0.latency.get() {
            latency.acknowledge_up_to(acknowledged);
        }
        let sent = self.sent();
        let (was, is) = (
            sent.saturating_sub(before),
            sent.saturating_sub(acknowledged),
        );
        let low_water = self.0.capacity() / 2;
        if is == 0 || (was > low_water && is <= low_water) {
            self.0.changed.notify_waiters();
        }
    }

    /// The sink is of no use any more.
    pub(super) fn fail(&self, err: SinkError) {
        self.failure().get_or_insert(err);
        self.0.changed.notify_waiters();
    }

    fn failure(&self) -> MutexGuard<'_, Option<SinkError>> {
        self.0
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_until(&self, done: impl Fn(&Inner, u64) -> bool) -> Result<(), SinkError> {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            self.check()?;
            if done(&self.0, self.sent().saturating_sub(self.acknowledged())) {
                return Ok(());
            }
            // The net under it: a byte bound of the client has no notice of its own.
            let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_that_is_added_lets_a_sender_go_on() {
        let in_flight = InFlight::new(1);
        in_flight.begin();
        assert!(in_flight.is_full());
        in_flight.allow(2);
        in_flight.wait_for_room().await.unwrap();
        in_flight.begin();
        // Less is no reason to stop what is on its way.
        in_flight.allow(1);
        in_flight.acknowledge_up_to(1);
        assert!(!in_flight.is_full());
    }
}
