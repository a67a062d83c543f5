//! Stores the checkpoint while rows are published.

use std::time::Duration;

use tokio::time::Instant;

use super::error::SourceError;
use crate::{
    kafka::{Acknowledgements, Throttling},
    ops::status::SharedStatus,
    postgres::leader::{HEARTBEAT_INTERVAL, Leadership},
};

/// The shortest pause between two checkpoints. After a crash, records acknowledged since the last one are published again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(50);
/// The pause after a write, as a multiple of its duration: 100 ms after 5 ms. While any transaction is open, Postgres keeps
/// every version of the checkpoint's row, and each one slows the next write.
const CHECKPOINT_PAUSE_FACTOR: u32 = 20;

/// The longest pause. The next heartbeat is sent within 250 + 125 ms, well below the lease of 600 ms.
const MAX_CHECKPOINT_INTERVAL: Duration = HEARTBEAT_INTERVAL.checked_div(2).unwrap();

/// Stores the acknowledged position as checkpoint. Each write is also the leader's heartbeat. Returns only when a write
/// fails; failures of the sink end [`Publisher::run`](super::publisher::Publisher::run).
pub(super) async fn run_checkpointer(
    leadership: &Leadership,
    acknowledgements: &Acknowledgements,
    reporter: &ProgressReporter<'_>,
) -> SourceError {
    let (start, mut last_count) = acknowledgements.acknowledged_cursor();
    let mut last_write = Instant::now();
    let mut pause = CHECKPOINT_INTERVAL;
    loop {
        tokio::time::sleep(pause).await;
        let (cursor, count) = acknowledgements.acknowledged_cursor();
        let moved = std::mem::replace(&mut last_count, count) != count;
        if moved || last_write.elapsed() >= HEARTBEAT_INTERVAL {
            let started = Instant::now();
            if let Err(err) = leadership.advance(&cursor).await {
                return err.into();
            }
            last_write = Instant::now();
            reporter.report_checkpoint();
            pause = ((last_write - started) * CHECKPOINT_PAUSE_FACTOR)
                .clamp(CHECKPOINT_INTERVAL, MAX_CHECKPOINT_INTERVAL);
            reporter.report_progress();
            // Progress beyond the start proves that the last failure is over.
            if cursor != start {
                reporter.status.mark_recovered();
            }
        } else if acknowledgements.is_empty() {
            // Waking up is most of what an idle source costs.
            pause = MAX_CHECKPOINT_INTERVAL;
        }
    }
}

/// Reports the progress of one sink to the status.
pub(super) struct ProgressReporter<'a> {
    status: &'a SharedStatus,
    acknowledgements: &'a Acknowledgements,
    /// Records that earlier sinks have published.
    published_before: u64,
    /// The time for which earlier sinks were throttled.
    throttled_before: Duration,
}

impl<'a> ProgressReporter<'a> {
    pub(super) fn new(status: &'a SharedStatus, acknowledgements: &'a Acknowledgements) -> Self {
        let before = status.get();
        Self {
            status,
            acknowledgements,
            published_before: before.published,
            throttled_before: before.throttling.total,
        }
    }

    fn report_checkpoint(&self) {
        let now = std::time::Instant::now();
        self.status
            .update(|status| status.checkpoint_at = Some(now));
    }

    pub(super) fn report_progress(&self) {
        let acknowledged = self.acknowledgements.acknowledged();
        let in_flight = self.acknowledgements.in_flight();
        let Throttling { total, until } = self.acknowledgements.throttling();
        let throttled_before = self.throttled_before;
        self.status.update(|status| {
            status.published = self.published_before + acknowledged;
            status.in_flight = in_flight;
            status.throttling.total = throttled_before + total;
            status.throttling.until = status.throttling.until.max(until);
        });
    }
}
