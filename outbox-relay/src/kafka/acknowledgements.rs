//! Tracks which records are acknowledged without a gap, and the outbox position this corresponds to.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Histogram, Latency, SinkError};
use crate::postgres::Cursor;

/// The records of one sink: how many were sent, how many are acknowledged without a gap, and the cursor that may be
/// stored as checkpoint. Shared by the task that sends, the checkpointer, and the task that receives acknowledgements.
///
/// Records are numbered from 0 in send order. They are acknowledged in batches; a batch has records of one partition.
/// Partitions are independent, so the numbers of several batches interleave, and batches are acknowledged in any order.
#[derive(Clone, Debug)]
pub struct Acknowledgements(Arc<Inner>);

/// How long the brokers throttled a sink, because it exceeds a quota.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Throttling {
    /// The sum of all throttle times.
    pub(crate) total: Duration,
    /// The end of the last one.
    pub(crate) until: Option<Instant>,
}

#[derive(Debug)]
struct Inner {
    /// The limit on records in flight.
    capacity: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    /// Unacknowledged batches, by the number of their first record. All records before the lowest are acknowledged.
    outstanding: Mutex<BTreeSet<u64>>,
    /// Cursors, each with the number of records sent when it was reached. The first is not after the last checkpoint.
    cursors: Mutex<VecDeque<(u64, Cursor)>>,
    failure: Mutex<Option<SinkError>>,
    throttling: Mutex<Throttling>,
    /// Set if latency is measured.
    latency: OnceLock<Latency>,
    /// Notified on the first failure, when half of the capacity is free again, and when nothing is in flight. Not on
    /// every acknowledgement: a sender notified for a single free slot would wait again at once.
    changed: Notify,
}

impl Acknowledgements {
    /// Allows `capacity` records in flight after `start`.
    pub fn new(capacity: usize, start: Cursor) -> Self {
        Self(Arc::new(Inner {
            capacity: AtomicU64::new(capacity.max(1) as u64),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            outstanding: Mutex::default(),
            cursors: Mutex::new([(0, start)].into()),
            failure: Mutex::new(None),
            throttling: Mutex::default(),
            latency: OnceLock::new(),
            changed: Notify::new(),
        }))
    }

    /// The number of records sent.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Acquire)
    }

    /// The number of records acknowledged without a gap.
    pub fn acknowledged(&self) -> u64 {
        self.0.acknowledged.load(Ordering::Acquire)
    }

    /// The number of records that are unacknowledged or after an unacknowledged one.
    pub fn in_flight(&self) -> u64 {
        self.sent().saturating_sub(self.acknowledged())
    }

    /// Returns whether all records are acknowledged.
    pub fn is_empty(&self) -> bool {
        self.in_flight() == 0
    }

    /// Returns the sink's failure, if it has failed.
    ///
    /// # Errors
    /// The failure.
    pub fn ensure_usable(&self) -> Result<(), SinkError> {
        self.0.failure.lock().clone().map_or(Ok(()), Err)
    }

    /// Returns whether the limit on records in flight is reached.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight() >= self.capacity()
    }

    /// Raises the limit on records in flight. A lower limit is ignored.
    pub(crate) fn raise_capacity(&self, capacity: usize) {
        self.0.capacity.fetch_max(capacity as u64, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }

    /// Waits until another record may be sent.
    ///
    /// # Errors
    /// If the sink fails meanwhile.
    pub(super) async fn wait_for_capacity(&self) -> Result<(), SinkError> {
        self.wait_until(|| !self.is_full()).await
    }

    /// Waits until all records are acknowledged.
    ///
    /// # Errors
    /// If the sink fails meanwhile.
    pub async fn wait_until_empty(&self) -> Result<(), SinkError> {
        self.wait_until(|| self.is_empty()).await
    }

    /// Waits until the sink fails.
    pub async fn failed(&self) -> SinkError {
        loop {
            if let Err(err) = self.wait_until(|| false).await {
                return err;
            }
        }
    }

    /// Measures in `histogram` the latency of the records registered with [`track_latency`](Self::track_latency).
    pub(crate) fn measure(&self, histogram: Arc<Histogram>) {
        // Called once per sink.
        let _ = self.0.latency.set(Latency::new(histogram));
    }

    /// Registers the creation time of the next record, which represents `weight` records.
    pub(crate) fn track_latency(&self, created_at_us: i64, weight: u64) {
        if let Some(latency) = self.0.latency.get() {
            latency.track(self.sent(), created_at_us, weight);
        }
    }

    /// Discards the registration of a record that was not sent.
    pub(crate) fn untrack_latency(&self) {
        if let Some(latency) = self.0.latency.get() {
            latency.untrack(self.sent());
        }
    }

    /// Records a throttle time that a broker announced.
    pub(super) fn record_throttle(&self, throttle_time: Duration) {
        if throttle_time.is_zero() {
            return;
        }
        let mut throttling = self.0.throttling.lock();
        throttling.total += throttle_time;
        throttling.until = throttling.until.max(Some(Instant::now() + throttle_time));
    }

    pub(crate) fn throttling(&self) -> Throttling {
        *self.0.throttling.lock()
    }

    /// Returns the number of the next record, the first of a batch.
    pub(super) fn begin_batch(&self) -> u64 {
        // Both under the lock: a concurrent acknowledgement must not miss this number.
        let mut outstanding = self.0.outstanding.lock();
        let number = self.0.sent.fetch_add(1, Ordering::AcqRel);
        outstanding.insert(number);
        number
    }

    /// Returns the number of the next record, which joins an unacknowledged batch.
    pub(super) fn join_batch(&self) -> u64 {
        self.0.sent.fetch_add(1, Ordering::AcqRel)
    }

    /// Undoes the last [`begin_batch`](Self::begin_batch): the record was not sent.
    pub(super) fn undo_begin(&self, number: u64) {
        self.0.outstanding.lock().remove(&number);
        self.0.sent.fetch_sub(1, Ordering::AcqRel);
    }

    /// Acknowledges the batches that begin with these records.
    pub(super) fn acknowledge(&self, firsts: impl IntoIterator<Item = u64>) {
        let mut outstanding = self.0.outstanding.lock();
        for first in firsts {
            outstanding.remove(&first);
        }
        let lowest = outstanding.first().copied();
        let acknowledged = lowest.unwrap_or_else(|| self.sent());
        let before = self
            .0
            .acknowledged
            .fetch_max(acknowledged, Ordering::AcqRel);
        drop(outstanding);
        if let Some(latency) = self.0.latency.get() {
            latency.acknowledge_up_to(acknowledged);
        }
        let sent = self.sent();
        let (in_flight_before, in_flight) = (
            sent.saturating_sub(before),
            sent.saturating_sub(acknowledged),
        );
        let low_water = self.capacity() / 2;
        if in_flight == 0 || (in_flight_before > low_water && in_flight <= low_water) {
            self.0.changed.notify_waiters();
        }
    }

    /// Marks the sink as failed. Only the first failure is kept.
    pub(super) fn fail(&self, err: SinkError) {
        self.0.failure.lock().get_or_insert(err);
        self.0.changed.notify_waiters();
    }

    /// Registers a cursor that may be stored once the first `sent` records are acknowledged.
    pub(crate) fn register_cursor(&self, sent: u64, cursor: &Cursor) {
        let mut cursors = self.0.cursors.lock();
        // An idle source advances its snapshot without sending records.
        if cursors.len() > 1 && cursors.back().is_some_and(|(count, _)| *count == sent) {
            cursors.pop_back();
        }
        cursors.push_back((sent, cursor.clone()));
    }

    /// Returns the last cursor that may be stored, and the number of records before it.
    pub(crate) fn acknowledged_cursor(&self) -> (Cursor, u64) {
        let acknowledged = self.acknowledged();
        let mut cursors = self.0.cursors.lock();
        while cursors.len() > 1 && cursors[1].0 <= acknowledged {
            cursors.pop_front();
        }
        let (count, cursor) = &cursors[0];
        (cursor.clone(), *count)
    }

    fn capacity(&self) -> u64 {
        self.0.capacity.load(Ordering::Acquire)
    }

    async fn wait_until(&self, is_done: impl Fn() -> bool) -> Result<(), SinkError> {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no notification is missed.
            changed.as_mut().enable();
            self.ensure_usable()?;
            if is_done() {
                return Ok(());
            }
            // A fallback: the client's limit on bytes does not notify.
            let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn new(capacity: usize) -> Acknowledgements {
        Acknowledgements::new(capacity, cursor(0))
    }

    /// A cursor that encodes the number of records before it.
    fn cursor(records: u64) -> Cursor {
        Cursor::new("1:1:".parse().unwrap(), records.cast_signed(), None)
    }

    /// An operation; the number selects a batch.
    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        Join(usize),
        Acknowledge(usize),
        Undo,
        Mark,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Begin),
            4 => any::<usize>().prop_map(Step::Join),
            3 => any::<usize>().prop_map(Step::Acknowledge),
            1 => Just(Step::Undo),
            2 => Just(Step::Mark),
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        /// Compares with a simple model: one flag per record.
        #[test]
        fn the_acknowledged_prefix_ends_at_the_first_gap(steps in steps()) {
            let tracker = new(1_000);
            let mut records: Vec<bool> = Vec::new();
            let mut batches: Vec<Vec<u64>> = Vec::new();
            let mut marks = vec![0];
            for step in steps {
                match step {
                    Step::Begin => {
                        let number = tracker.begin_batch();
                        records.push(false);
                        batches.push(vec![number]);
                    }
                    Step::Join(pick) if !batches.is_empty() => {
                        let at = pick % batches.len();
                        batches[at].push(tracker.join_batch());
                        records.push(false);
                    }
                    Step::Acknowledge(pick) if !batches.is_empty() => {
                        let batch = batches.swap_remove(pick % batches.len());
                        for number in &batch {
                            records[*number as usize] = true;
                        }
                        tracker.acknowledge([batch[0]]);
                    }
                    Step::Undo => {
                        let number = tracker.begin_batch();
                        prop_assert_eq!(number, records.len() as u64);
                        tracker.undo_begin(number);
                    }
                    Step::Mark => {
                        tracker.register_cursor(records.len() as u64, &cursor(records.len() as u64));
                        marks.push(records.len() as u64);
                    }
                    Step::Join(_) | Step::Acknowledge(_) => {}
                }
                let gap = records.iter().position(|is_acknowledged| !is_acknowledged);
                let acknowledged = gap.unwrap_or(records.len()) as u64;
                prop_assert_eq!(tracker.sent(), records.len() as u64);
                // It advances only with an acknowledgement.
                prop_assert!(tracker.acknowledged() <= acknowledged);
                tracker.acknowledge([]);
                prop_assert_eq!(tracker.acknowledged(), acknowledged);
                let reached = marks.iter().copied().filter(|mark| *mark <= acknowledged).max();
                let reached = reached.unwrap_or(0);
                prop_assert_eq!(tracker.acknowledged_cursor(), (cursor(reached), reached));
            }
        }
    }

    #[test]
    fn an_idle_source_keeps_a_bounded_number_of_cursors() {
        let tracker = new(10);
        for seq in 0..1_000 {
            tracker.register_cursor(0, &cursor(seq));
        }
        assert!(tracker.0.cursors.lock().len() <= 2);
        assert_eq!(tracker.acknowledged_cursor(), (cursor(999), 0));
    }

    #[tokio::test]
    async fn raised_capacity_unblocks_a_sender() {
        let tracker = new(1);
        let first = tracker.begin_batch();
        assert!(tracker.is_full());
        tracker.raise_capacity(2);
        tracker.wait_for_capacity().await.unwrap();
        tracker.begin_batch();
        // A lower limit does not stop records in flight.
        tracker.raise_capacity(1);
        tracker.acknowledge([first]);
        assert!(!tracker.is_full());
    }
}
