//! Moves the checkpoint while rows are published.

use std::time::Duration;

use tokio::time::Instant;

use super::error::SourceError;
use crate::{
    kafka::Acknowledgements,
    ops::status::SharedStatus,
    postgres::leader::{HEARTBEAT_INTERVAL, Leadership},
};

/// How often the checkpoint follows the acknowledgements. After a kill, what was published since is
/// published again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(50);
/// Storing one that took 5 ms is followed by a rest of 100 ms: while a transaction is held open
/// somewhere, every version of the row stays, and each makes the next one slower.
const CHECKPOINT_REST: u32 = 20;

/// Moves the checkpoint after the acknowledgements, and shows that the leader is alive. Ends only
/// when it can't. (What goes wrong in the sink is for those to notice who use it.)
pub(super) async fn keep_checkpoint(
    leadership: &Leadership,
    acknowledgements: &Acknowledgements,
    shown: &Shown<'_>,
) -> SourceError {
    let (start, mut reached) = acknowledgements.reached();
    let mut last_write = Instant::now();
    let mut rest = CHECKPOINT_INTERVAL;
    loop {
        tokio::time::sleep(rest).await;
        let (cursor, count) = acknowledgements.reached();
        let moved = std::mem::replace(&mut reached, count) != count;
        if moved || last_write.elapsed() >= HEARTBEAT_INTERVAL {
            let started = Instant::now();
            if let Err(err) = leadership.advance(&cursor).await {
                return err.into();
            }
            last_write = Instant::now();
            shown.stored();
            // Two of these and a heartbeat's interval are less than the lease.
            rest = ((last_write - started) * CHECKPOINT_REST)
                .clamp(CHECKPOINT_INTERVAL, HEARTBEAT_INTERVAL / 2);
            shown.update();
            // What kept it from publishing is recovered when it has come further than before.
            if cursor != start {
                shown.status.recovered();
            }
        }
    }
}

/// What the status says of the records.
pub(super) struct Shown<'a> {
    status: &'a SharedStatus,
    acknowledgements: &'a Acknowledgements,
    /// Those that earlier sinks have published.
    before: u64,
}

impl<'a> Shown<'a> {
    pub(super) fn new(status: &'a SharedStatus, acknowledgements: &'a Acknowledgements) -> Self {
        let before = status.get().published;
        Self {
            status,
            acknowledgements,
            before,
        }
    }

    fn stored(&self) {
        let now = std::time::Instant::now();
        self.status
            .update(|status| status.checkpoint_at = Some(now));
    }

    pub(super) fn update(&self) {
        let acknowledged = self.acknowledgements.acknowledged();
        let in_flight = self.acknowledgements.in_flight();
        self.status.update(|status| {
            status.published = self.before + acknowledged;
            status.in_flight = in_flight;
        });
    }
}
