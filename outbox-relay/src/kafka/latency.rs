//! The latency from an event's insert to Kafka's acknowledgement, measured on a sample of the events.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use super::histogram::Histogram;

/// The limit on samples per page. In a larger page one sample represents several consecutive rows. The cost per row of a
/// backlog stays negligible, and at low rates every event is measured.
const SAMPLES_PER_PAGE: usize = 64;

/// The sampled records in flight. Their number is bounded by the limit on records in flight.
#[derive(Debug)]
pub(crate) struct Latency {
    histogram: Arc<Histogram>,
    samples: Mutex<VecDeque<Sample>>,
    /// The number of the first sample, or `u64::MAX`. Lets acknowledgements without a sample skip the lock.
    first: AtomicU64,
}

#[derive(Debug)]
struct Sample {
    number: u64,
    created_at_us: i64,
    weight: u64,
}

impl Latency {
    pub(crate) fn new(histogram: Arc<Histogram>) -> Self {
        Self {
            histogram,
            samples: Mutex::default(),
            first: AtomicU64::new(u64::MAX),
        }
    }

    /// Registers the creation time of the record that will get this number. Call it before the record is sent.
    pub(crate) fn track(&self, number: u64, created_at_us: i64, weight: u64) {
        let mut samples = self.samples.lock();
        samples.push_back(Sample {
            number,
            created_at_us,
            weight,
        });
        self.update_first(&samples);
    }

    /// Discards the sample of a record that was not sent.
    pub(crate) fn untrack(&self, number: u64) {
        let mut samples = self.samples.lock();
        while samples.back().is_some_and(|last| last.number >= number) {
            samples.pop_back();
        }
        self.update_first(&samples);
    }

    /// Observes the samples below this number, all of which are acknowledged.
    pub(crate) fn acknowledge_up_to(&self, acknowledged: u64) {
        if self.first.load(Ordering::Acquire) >= acknowledged {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_us = i64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(i64::MAX);
        let mut samples = self.samples.lock();
        while samples
            .front()
            .is_some_and(|first| first.number < acknowledged)
        {
            let Some(sample) = samples.pop_front() else {
                break;
            };
            // The database's clock may be ahead of ours.
            let us = now_us.saturating_sub(sample.created_at_us).max(0);
            let took = Duration::from_micros(us.unsigned_abs());
            self.histogram.observe(took, sample.weight);
        }
        self.update_first(&samples);
    }

    fn update_first(&self, samples: &VecDeque<Sample>) {
        let first = samples.front().map_or(u64::MAX, |first| first.number);
        self.first.store(first, Ordering::Release);
    }
}

/// Selects the sampled rows of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    rows: usize,
    step: usize,
}

impl Sampling {
    pub(crate) fn of(rows: usize) -> Self {
        Self {
            rows,
            step: rows.div_ceil(SAMPLES_PER_PAGE).max(1),
        }
    }

    /// Returns how many rows this sample represents, or `None` if the row is not sampled.
    pub(crate) fn weight(self, index: usize) -> Option<u64> {
        let rest = self.rows.saturating_sub(index);
        (index.is_multiple_of(self.step)).then(|| self.step.min(rest) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_represented_once() {
        for rows in [1, 63, 64, 65, 1_000, 20_000] {
            let sampling = Sampling::of(rows);
            let weights: Vec<u64> = (0..rows).filter_map(|row| sampling.weight(row)).collect();
            assert_eq!(weights.iter().sum::<u64>(), rows as u64);
            assert!(weights.len() <= SAMPLES_PER_PAGE, "{rows}");
        }
    }

    #[test]
    fn an_acknowledged_record_is_counted_once_and_an_unsent_one_never() {
        let histogram = Arc::new(Histogram::default());
        let latency = Latency::new(Arc::clone(&histogram));
        let counted = || histogram.counts().iter().sum::<u64>();
        latency.track(0, 0, 10);
        latency.track(10, 0, 7);
        latency.acknowledge_up_to(0);
        assert_eq!(counted(), 0);
        latency.acknowledge_up_to(10);
        latency.acknowledge_up_to(10);
        assert_eq!(counted(), 10);
        latency.untrack(10);
        latency.track(10, 0, 1);
        latency.acknowledge_up_to(11);
        assert_eq!(counted(), 11);
    }
}
