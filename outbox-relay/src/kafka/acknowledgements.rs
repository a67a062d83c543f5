//! Which records are acknowledged, without a gap, and where in the outbox that is.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Histogram, Latency, SinkError};
use crate::postgres::Cursor;

/// The records of one sink: how many were sent, how many from the first on are acknowledged, and which cursor a
/// checkpoint may take then. Shared by the task that sends, the one that stores checkpoints, and whoever
/// learns of deliveries.
///
/// Records are numbered from 0 in the order in which they are sent. They are acknowledged by batches, which hold records
/// of one partition. Partitions do not wait for each other, so that numbers of several batches interleave, and batches are
/// acknowledged in any order.
#[derive(Clone, Debug)]
pub struct Acknowledgements(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Records that may be in flight at once.
    capacity: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    /// The batches that are not acknowledged, by the number of their first record: everything before the lowest is.
    outstanding: Mutex<BTreeSet<u64>>,
    /// Cursors, each with how many records were sent when it was reached. The first is that of the last checkpoint or
    /// before.
    cursors: Mutex<VecDeque<(u64, Cursor)>>,
    failure: Mutex<Option<SinkError>>,
    /// How long records take, where somebody wants to know.
    latency: OnceLock<Latency>,
    /// Told upon the first failure, when a good part of the room is free again, and when nothing is
    /// in flight any more. Not upon every delivery: a sender that is woken for a single place is
    /// asleep again at once.
    changed: Notify,
}

impl Acknowledgements {
    /// Room for `capacity` records behind `start`.
    pub fn new(capacity: usize, start: Cursor) -> Self {
        Self(Arc::new(Inner {
            capacity: AtomicU64::new(capacity.max(1) as u64),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            outstanding: Mutex::default(),
            cursors: Mutex::new([(0, start)].into()),
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

    /// How many records are not acknowledged, or wait for one that isn't.
    pub fn in_flight(&self) -> u64 {
        self.sent().saturating_sub(self.acknowledged())
    }

    /// Whether everything sent is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.in_flight() == 0
    }

    /// Fails once the sink has failed and is unusable.
    ///
    /// # Errors
    /// The first failure of the sink.
    pub fn ensure_usable(&self) -> Result<(), SinkError> {
        self.0.failure.lock().clone().map_or(Ok(()), Err)
    }

    /// Whether no record more may be sent now.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight() >= self.capacity()
    }

    /// From now on so many records may be in flight, if that is more than until now.
    pub(crate) fn allow(&self, capacity: usize) {
        self.0.capacity.fetch_max(capacity as u64, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }

    /// Waits until a record more may be sent.
    ///
    /// # Errors
    /// When the sink fails meanwhile.
    pub(super) async fn wait_for_room(&self) -> Result<(), SinkError> {
        self.wait_until(|| !self.is_full()).await
    }

    /// Waits until everything sent is acknowledged.
    ///
    /// # Errors
    /// When the sink fails meanwhile.
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

    /// Numbers the next record, which begins a batch.
    pub(super) fn begin_batch(&self) -> u64 {
        // Both under the lock: who looks for the lowest number must not miss this one.
        let mut outstanding = self.0.outstanding.lock();
        let number = self.0.sent.fetch_add(1, Ordering::AcqRel);
        outstanding.insert(number);
        number
    }

    /// Numbers the next record, which belongs to a batch that was begun and is not acknowledged.
    pub(super) fn join_batch(&self) -> u64 {
        self.0.sent.fetch_add(1, Ordering::AcqRel)
    }

    /// Gives the last number back, of a record that began a batch: it was not taken after all.
    pub(super) fn take_back(&self, number: u64) {
        self.0.outstanding.lock().remove(&number);
        self.0.sent.fetch_sub(1, Ordering::AcqRel);
    }

    /// The batches that begin with these records are acknowledged.
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
        let (was, is) = (
            sent.saturating_sub(before),
            sent.saturating_sub(acknowledged),
        );
        let low_water = self.capacity() / 2;
        if is == 0 || (was > low_water && is <= low_water) {
            self.0.changed.notify_waiters();
        }
    }

    /// The sink is of no use any more.
    pub(super) fn fail(&self, err: SinkError) {
        self.0.failure.lock().get_or_insert(err);
        self.0.changed.notify_waiters();
    }

    /// A checkpoint may take this cursor when the first `sent` records are acknowledged.
    pub(crate) fn mark(&self, sent: u64, cursor: &Cursor) {
        let mut cursors = self.0.cursors.lock();
        // An idle source moves on in snapshots without a record.
        if cursors.len() > 1 && cursors.back().is_some_and(|(count, _)| *count == sent) {
            cursors.pop_back();
        }
        cursors.push_back((sent, cursor.clone()));
    }

    /// The last cursor that a checkpoint may take, and how many records are before it.
    pub(crate) fn reached(&self) -> (Cursor, u64) {
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
            // From here on no change is missed.
            changed.as_mut().enable();
            self.ensure_usable()?;
            if is_done() {
                return Ok(());
            }
            // The net under it: a byte bound of the client has no notice of its own.
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

    /// A cursor that tells how many records are before it.
    fn cursor(records: u64) -> Cursor {
        Cursor::new("1:1:".parse().unwrap(), records.cast_signed(), None)
    }

    /// What happens to a sink, with a number that says to which batch.
    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        Join(usize),
        Acknowledge(usize),
        TakeBack,
        Mark,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Begin),
            4 => any::<usize>().prop_map(Step::Join),
            3 => any::<usize>().prop_map(Step::Acknowledge),
            1 => Just(Step::TakeBack),
            2 => Just(Step::Mark),
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        /// Against the plainest model there is: for each record whether it is acknowledged.
        #[test]
        fn what_is_acknowledged_ends_with_the_first_gap(steps in steps()) {
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
                    Step::TakeBack => {
                        let number = tracker.begin_batch();
                        prop_assert_eq!(number, records.len() as u64);
                        tracker.take_back(number);
                    }
                    Step::Mark => {
                        tracker.mark(records.len() as u64, &cursor(records.len() as u64));
                        marks.push(records.len() as u64);
                    }
                    Step::Join(_) | Step::Acknowledge(_) => {}
                }
                let gap = records.iter().position(|is_acknowledged| !is_acknowledged);
                let acknowledged = gap.unwrap_or(records.len()) as u64;
                prop_assert_eq!(tracker.sent(), records.len() as u64);
                // It moves when something is acknowledged.
                prop_assert!(tracker.acknowledged() <= acknowledged);
                tracker.acknowledge([]);
                prop_assert_eq!(tracker.acknowledged(), acknowledged);
                let reached = marks.iter().copied().filter(|mark| *mark <= acknowledged).max();
                let reached = reached.unwrap_or(0);
                prop_assert_eq!(tracker.reached(), (cursor(reached), reached));
            }
        }
    }

    #[test]
    fn an_idle_source_keeps_a_bounded_number_of_cursors() {
        let tracker = new(10);
        for seq in 0..1_000 {
            tracker.mark(0, &cursor(seq));
        }
        assert!(tracker.0.cursors.lock().len() <= 2);
        assert_eq!(tracker.reached(), (cursor(999), 0));
    }

    #[tokio::test]
    async fn room_that_is_added_lets_a_sender_go_on() {
        let tracker = new(1);
        let first = tracker.begin_batch();
        assert!(tracker.is_full());
        tracker.allow(2);
        tracker.wait_for_room().await.unwrap();
        tracker.begin_batch();
        // Less is no reason to stop what is on its way.
        tracker.allow(1);
        tracker.acknowledge([first]);
        assert!(!tracker.is_full());
    }
}
