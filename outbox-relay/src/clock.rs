//! The timestamps of records, when the clocks of this machine and of the database disagree.
//!
//! The relay cannot tell which clock is wrong. A timestamp in the past can make Kafka delete a new segment (`retention.ms`), so the later
//! clock is used. A timestamp in the future makes Kafka reject the record (`message.timestamp.after.max.ms`), after which the
//! earlier one is used.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A difference below this is neither reported nor corrected.
const TOLERANCE: Duration = Duration::from_secs(30);

/// This machine's clock, and how far the database's is ahead of it.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// In milliseconds; 0 within the tolerance.
    database_ahead_ms: AtomicI64,
    /// Set once Kafka has rejected the later time, until the clocks agree.
    uses_earlier: AtomicBool,
}

impl Clock {
    /// Records a reading of the database's clock, which was requested at `before` and received at `after`.
    pub(crate) fn record_database_time(
        &self,
        database_ms: i64,
        before: SystemTime,
        after: SystemTime,
    ) {
        let (before, after) = (unix_ms(before), unix_ms(after));
        // Within these bounds, whenever the database read its clock.
        let (most, least) = (database_ms - before, database_ms - after);
        let tolerance = i64::try_from(TOLERANCE.as_millis()).unwrap_or(i64::MAX);
        let is_ahead = least > tolerance;
        let is_behind = most < -tolerance;
        let ahead_ms = match is_ahead || is_behind {
            true => i64::midpoint(most, least),
            false => 0,
        };
        self.0.database_ahead_ms.store(ahead_ms, Ordering::Relaxed);
        if ahead_ms == 0 {
            self.0.uses_earlier.store(false, Ordering::Relaxed);
        }
    }

    /// Returns how far the database's clock is ahead of this machine's, in seconds; 0 within half a minute.
    #[expect(clippy::cast_precision_loss)]
    pub(crate) fn database_ahead_s(&self) -> f64 {
        self.0.database_ahead_ms.load(Ordering::Relaxed) as f64 / 1e3
    }

    /// Uses the earlier clock from now on, because Kafka has rejected the later one.
    pub(crate) fn use_earlier(&self) {
        self.0.uses_earlier.store(true, Ordering::Relaxed);
    }

    /// Returns the timestamp of a record, in milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> i64 {
        let here = unix_ms(SystemTime::now());
        let database = here + self.0.database_ahead_ms.load(Ordering::Relaxed);
        match self.0.uses_earlier.load(Ordering::Relaxed) {
            true => here.min(database),
            false => here.max(database),
        }
    }
}

/// Returns 0 for a time before 1970.
fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_clock_is_used_until_kafka_rejects_it() {
        const HOUR_MS: i64 = 3_600_000;
        for ahead_ms in [2 * HOUR_MS, -2 * HOUR_MS, 1_000] {
            let clock = Clock::default();
            let now = SystemTime::now();
            clock.record_database_time(unix_ms(now) + ahead_ms, now, now);
            let ahead_ms = if ahead_ms == 1_000 { 0 } else { ahead_ms };
            #[expect(clippy::cast_precision_loss)]
            let ahead_s = ahead_ms as f64 / 1e3;
            assert!((clock.database_ahead_s() - ahead_s).abs() < 1e-6);
            let difference = |clock: &Clock| clock.now_ms() - unix_ms(SystemTime::now());
            assert!((difference(&clock) - ahead_ms.max(0)).abs() < 1_000);
            clock.use_earlier();
            assert!((difference(&clock) - ahead_ms.min(0)).abs() < 1_000);
        }
    }

    #[test]
    fn a_slow_response_is_not_taken_for_a_difference() {
        let clock = Clock::default();
        let before = SystemTime::now();
        let after = before + Duration::from_mins(2);
        clock.record_database_time(unix_ms(before) + 1_000, before, after);
        assert!(clock.database_ahead_s() == 0.0);
    }
}
