//! The time from an event's row to Kafka's acknowledgement, taken from some of them.

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

/// Rows of a page of which the time is taken; of a larger page every so manieth, which then stands
/// for those up to the next. So a backlog costs nothing a row, and while events are few none is left
/// out.
const SAMPLES_PER_PAGE: usize = 64;

/// Records on their way whose time is taken. There are never more than may be in flight.
#[derive(Debug)]
pub(crate) struct Latency {
    histogram: Arc<Histogram>,
    samples: Mutex<VecDeque<Sample>>,
    /// The number of the first sample, or a number that no record has: most acknowledgements need no
    /// lock to see that none of theirs is one.
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

    /// The record that gets this number next was created then. To be called before it is sent.
    pub(crate) fn expect(&self, number: u64, created_at_us: i64, weight: u64) {
        let mut samples = self.samples.lock();
        samples.push_back(Sample {
            number,
            created_at_us,
            weight,
        });
        self.note_first(&samples);
    }

    /// The record that was to get this number was not taken.
    pub(crate) fn forget(&self, number: u64) {
        let mut samples = self.samples.lock();
        while samples.back().is_some_and(|last| last.number >= number) {
            samples.pop_back();
        }
        self.note_first(&samples);
    }

    /// All records below this number are acknowledged.
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
            // The database has a clock of its own, which may be ahead of ours.
            let us = now_us.saturating_sub(sample.created_at_us).max(0);
            let took = Duration::from_micros(us.unsigned_abs());
            self.histogram.observe(took, sample.weight);
        }
        self.note_first(&samples);
    }

    fn note_first(&self, samples: &VecDeque<Sample>) {
        let first = samples.front().map_or(u64::MAX, |first| first.number);
        self.first.store(first, Ordering::Release);
    }
}

/// Which rows of a page are samples.
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

    /// How many rows this one stands for; none if it is no sample.
    pub(crate) fn weight(self, index: usize) -> Option<u64> {
        let rest = self.rows.saturating_sub(index);
        (index.is_multiple_of(self.step)).then(|| self.step.min(rest) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_stood_for_once() {
        for rows in [1, 63, 64, 65, 1_000, 20_000] {
            let sampling = Sampling::of(rows);
            let weights: Vec<u64> = (0..rows).filter_map(|row| sampling.weight(row)).collect();
            assert_eq!(weights.iter().sum::<u64>(), rows as u64);
            assert!(weights.len() <= SAMPLES_PER_PAGE, "{rows}");
        }
    }

    #[test]
    fn what_is_acknowledged_is_counted_once_and_what_was_not_taken_never() {
        let histogram = Arc::new(Histogram::default());
        let latency = Latency::new(Arc::clone(&histogram));
        let counted = || histogram.counts().iter().sum::<u64>();
        latency.expect(0, 0, 10);
        latency.expect(10, 0, 7);
        latency.acknowledge_up_to(0);
        assert_eq!(counted(), 0);
        latency.acknowledge_up_to(10);
        latency.acknowledge_up_to(10);
        assert_eq!(counted(), 10);
        latency.forget(10);
        latency.expect(10, 0, 1);
        latency.acknowledge_up_to(11);
        assert_eq!(counted(), 11);
    }
}
