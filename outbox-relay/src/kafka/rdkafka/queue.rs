//! Limits the bytes in librdkafka's queue. librdkafka gives up a record that it could not deliver within the delivery timeout of
//! its enqueueing. So the queue never holds more than the brokers take in a part of that time, however slow they are.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// The limit before anything is acknowledged. A lower one would suffice for lower quotas of bytes, but makes batches so small that
/// quotas of requests delay them.
const MIN_BYTES: usize = 256 * 1024;
/// Metadata of a record, estimated.
const OVERHEAD_BYTES: usize = 100;
/// The part of the delivery timeout in which the rate is measured. With the default of 30 s it is longer than the ten seconds of
/// a burst that Kafka's quotas allow.
const PERIODS_PER_TIMEOUT: u32 = 2;
/// The part of the bytes acknowledged in that time that the queue may hold. While it is exhausted, it grows by a half with every
/// reading.
const BYTES_PER_LIMIT: usize = 2;

/// Counts the bytes in librdkafka's queue.
#[derive(Debug)]
pub(super) struct Queue {
    bytes: AtomicUsize,
    /// Wraps around.
    removed: AtomicUsize,
    limit: AtomicUsize,
    max_bytes: usize,
}

impl Queue {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            removed: AtomicUsize::new(0),
            limit: AtomicUsize::new(MIN_BYTES),
            max_bytes,
        }
    }

    /// Returns true if a record of this size may be added. An empty queue accepts any.
    pub(super) fn has_capacity(&self, record_bytes: usize) -> bool {
        let bytes = self.bytes.load(Ordering::Acquire);
        bytes == 0 || bytes + record_bytes <= self.limit.load(Ordering::Acquire)
    }

    pub(super) fn add(&self, record_bytes: usize) {
        self.bytes.fetch_add(record_bytes, Ordering::AcqRel);
    }

    pub(super) fn remove(&self, record_bytes: usize) {
        self.bytes.fetch_sub(record_bytes, Ordering::AcqRel);
        self.removed.fetch_add(record_bytes, Ordering::AcqRel);
    }
}

/// Returns the bytes that a record takes in the queue.
pub(super) fn bytes_of<'a>(
    key: &[u8],
    payload: Option<&[u8]>,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> usize {
    let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
    key.len() + payload.map_or(0, <[u8]>::len) + headers + OVERHEAD_BYTES
}

/// Adapts the limit of a [`Queue`] to the rate at which records leave it.
pub(super) struct RateLimiter {
    period: Duration,
    /// The bytes removed so far, by time.
    removed: VecDeque<(Instant, usize)>,
}

impl RateLimiter {
    pub(super) fn new(delivery_timeout: Duration) -> Self {
        Self {
            period: delivery_timeout / PERIODS_PER_TIMEOUT,
            removed: VecDeque::new(),
        }
    }

    pub(super) fn adapt(&mut self, queue: &Queue, now: Instant) {
        let removed = queue.removed.load(Ordering::Acquire);
        self.removed.push_back((now, removed));
        while (self.removed.front()).is_some_and(|(at, _)| now - *at > self.period) {
            self.removed.pop_front();
        }
        let before = self
            .removed
            .front()
            .map_or(removed, |(_, removed)| *removed);
        let recently = removed.wrapping_sub(before);
        let limit = MIN_BYTES + recently / BYTES_PER_LIMIT;
        queue
            .limit
            .store(limit.min(queue.max_bytes), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);
    const TICK: Duration = Duration::from_millis(50);

    /// Returns the longest time that a record spends in the queue of a broker with a quota: it takes the bytes of the first ten
    /// seconds at once, and then `bytes_per_s`.
    fn longest_delay(bytes_per_s: usize) -> Duration {
        let (queue, mut limiter) = (Queue::new(32 << 20), RateLimiter::new(TIMEOUT));
        let start = Instant::now();
        let (mut added, mut longest, mut budget) = (VecDeque::new(), 0, 10 * bytes_per_s);
        for tick in 0..2_000 {
            while queue.has_capacity(1_000) {
                queue.add(1_000);
                added.push_back(tick);
            }
            if tick > 10 * 20 {
                budget += bytes_per_s / 20;
            }
            while budget >= 1_000
                && let Some(added_at) = added.pop_front()
            {
                queue.remove(1_000);
                budget -= 1_000;
                longest = longest.max(tick - added_at);
            }
            limiter.adapt(&queue, start + TICK * tick);
        }
        TICK * longest
    }

    #[test]
    fn a_record_is_not_queued_for_longer_than_a_part_of_the_delivery_timeout() {
        for bytes_per_s in [25_000, 100_000, 1_000_000] {
            let delay = longest_delay(bytes_per_s);
            assert!(delay < TIMEOUT * 3 / 4, "{bytes_per_s}: {delay:?}");
        }
    }

    #[test]
    fn the_limit_grows_to_its_maximum_within_a_second() {
        let (queue, mut limiter) = (Queue::new(32 << 20), RateLimiter::new(TIMEOUT));
        let start = Instant::now();
        for tick in 0..20 {
            while queue.has_capacity(1_000) {
                queue.add(1_000);
            }
            while queue.bytes.load(Ordering::Acquire) > 0 {
                queue.remove(1_000);
            }
            limiter.adapt(&queue, start + TICK * tick);
        }
        assert_eq!(queue.limit.load(Ordering::Acquire), 32 << 20);
    }
}
