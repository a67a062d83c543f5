//! The times of the polls for new rows.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time from one poll to the next. A row waits for half of it on average, and each poll costs the database the same,
/// however few rows it finds.
const MIN_INTERVAL: Duration = Duration::from_millis(1);
/// The interval as a fraction of the time since the last row: 2 ms after 100 ms, 20 ms after a second. A row waits for at most
/// this fraction of the time for which there was none.
const INTERVAL_DIVISOR: u32 = 50;

/// Schedules the polls of a source: a busy outbox is polled often, and an idle one rarely.
#[derive(Debug)]
pub(super) struct PollSchedule {
    max_interval: Duration,
    polled_at: Instant,
    last_row_at: Instant,
}

impl PollSchedule {
    pub(super) fn new(max_interval: Duration, now: Instant) -> Self {
        Self {
            max_interval,
            polled_at: now,
            last_row_at: now,
        }
    }

    /// Records the start of a poll.
    pub(super) fn start_poll(&mut self, now: Instant) {
        self.polled_at = now;
    }

    /// Records that rows were published.
    pub(super) fn record_rows(&mut self, now: Instant) {
        self.last_row_at = now;
    }

    /// Returns the time of the next poll.
    pub(super) fn next_poll_at(&self, now: Instant) -> Instant {
        let interval = (now - self.last_row_at) / INTERVAL_DIVISOR;
        // The upper limit last: it may be the lower one.
        self.polled_at + interval.max(MIN_INTERVAL).min(self.max_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_grows_with_the_time_since_the_last_row() {
        let start = Instant::now();
        let mut schedule = PollSchedule::new(Duration::from_millis(20), start);
        let mut interval_at = |ms| {
            let now = start + Duration::from_millis(ms);
            schedule.start_poll(now);
            (schedule.next_poll_at(now) - now).as_millis()
        };
        assert_eq!(
            [0, 100, 1_000, 10_000].map(&mut interval_at),
            [1, 2, 20, 20]
        );
        schedule.record_rows(start + Duration::from_secs(10));
        assert_eq!(
            schedule.next_poll_at(start + Duration::from_secs(10)) - start,
            Duration::from_millis(10_001)
        );
    }
}
