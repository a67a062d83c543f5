//! A histogram of durations; an observation costs nanoseconds.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The upper bounds of the buckets, in microseconds: fine-grained around the latency of a healthy relay, and up to an hour
/// for backlogs.
pub(crate) const BOUNDS_US: [u64; 22] = [
    1_000,
    2_000,
    3_000,
    5_000,
    7_500,
    10_000,
    15_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// The count of each bucket; the unbounded one is last.
pub(crate) type Counts = [u64; BOUNDS_US.len() + 1];

/// Counts durations by buckets.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts a duration `weight` times.
    pub(crate) fn observe(&self, took: Duration, weight: u64) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.counts[bucket].fetch_add(weight, Ordering::Relaxed);
        let sum_us = us.saturating_mul(weight);
        self.sum_us.fetch_add(sum_us, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed))
    }

    /// The sum of all durations, in seconds.
    #[expect(clippy::cast_precision_loss)]
    pub(crate) fn sum_s(&self) -> f64 {
        self.sum_us.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// Returns the quantile in seconds, interpolated linearly within a bucket as Prometheus' `histogram_quantile` does, or
/// `None` if nothing was counted.
#[expect(clippy::cast_precision_loss)]
pub(crate) fn quantile_s(counts: &Counts, quantile: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = quantile * total as f64;
    let (mut below, mut low) = (0.0, 0.0);
    for (count, bound) in counts.iter().zip(BOUNDS_US) {
        let (count, bound) = (*count as f64, bound as f64 / 1e6);
        if below + count >= rank {
            return Some(low + (bound - low) * ((rank - below) / count.max(1.0)));
        }
        (below, low) = (below + count, bound);
    }
    // The last bucket has no upper bound.
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_in_its_bucket() {
        let histogram = Histogram::default();
        assert_eq!(quantile_s(&histogram.counts(), 0.5), None);
        histogram.observe(Duration::from_micros(1_500), 98);
        histogram.observe(Duration::from_millis(40), 2);
        let counts = histogram.counts();
        let (median, p99) = (quantile_s(&counts, 0.5), quantile_s(&counts, 0.99));
        assert!(median.is_some_and(|s| (0.001..=0.002).contains(&s)));
        assert!(p99.is_some_and(|s| (0.025..=0.05).contains(&s)));
        assert!((histogram.sum_s() - 0.227).abs() < 1e-6);
    }

    #[test]
    fn a_duration_above_every_bound_is_counted() {
        let histogram = Histogram::default();
        histogram.observe(Duration::MAX, 1);
        histogram.observe(Duration::ZERO, 1);
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[BOUNDS_US.len()]), (1, 1));
        assert_eq!(quantile_s(&counts, 1.0), Some(3_600.0));
    }
}
