//! Reports the failures of a source: counts them, sets the status, and logs each once a minute.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::{error::SourceError, outcome::Restart, recovery::Recovery};
use crate::{
    clock::Clock,
    kafka::RejectionCause,
    ops::status::{Failure, Reason, SharedStatus},
};

/// The interval at which a lasting error is logged again.
const REMINDER_INTERVAL: Duration = Duration::from_secs(60);

/// The failures of a source, over all its restarts.
pub(super) struct Failures {
    status: SharedStatus,
    clock: Clock,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The last logged error and when it was logged.
    logged: Option<(String, Instant)>,
    /// The last event that halted the source. It is counted once.
    rejected: Option<Uuid>,
}

impl Failures {
    pub(super) fn new(status: SharedStatus, clock: Clock) -> Self {
        Self {
            status,
            clock,
            seen: Mutex::default(),
        }
    }

    /// Reports an error after which the source restarts from its checkpoint. Returns the recovery from it.
    pub(super) fn record_error(&self, err: &SourceError) -> Recovery {
        self.count_rejection(err);
        let recovery = Recovery::from(err);
        let failure = failure(err, &recovery);
        self.log(&failure);
        self.status.update(|status| status.record_restart(failure));
        recovery
    }

    /// Reports a rejected row that is retried with the same sink.
    pub(super) fn record_halt(&self, err: &SourceError) {
        self.count_rejection(err);
        let failure = failure(err, &Recovery::from(err));
        self.log(&failure);
        self.status.update(|status| status.record_halt(failure));
    }

    /// Reports a rejection that made the sink unusable.
    pub(super) fn record_restart(&self, restart: &Restart) {
        let failure = Failure {
            reason: Reason::OneByOne,
            error: restart.to_string(),
            hint: None,
        };
        self.log(&failure);
        self.status.update(|status| status.record_restart(failure));
    }

    /// Logs the next failure even if it is the same as the last one.
    pub(super) fn forget_logged(&self) {
        self.seen.lock().logged = None;
    }

    /// Counts a rejected event once. If the broker has rejected its time, the next one comes from the other clock.
    fn count_rejection(&self, err: &SourceError) {
        if let SourceError::Rejected {
            event_id, source, ..
        } = err
        {
            if self.seen.lock().rejected.replace(*event_id) != Some(*event_id) {
                self.status.update(|status| status.rejected.halted += 1);
            }
            if source.cause() == RejectionCause::Clock {
                self.clock.use_earlier();
            }
        }
    }

    fn log(&self, failure: &Failure) {
        let (source, error, hint) = (self.status.name(), &failure.error, failure.hint);
        let mut seen = self.seen.lock();
        let is_logged = (seen.logged.as_ref())
            .is_some_and(|(logged, at)| logged == error && at.elapsed() < REMINDER_INTERVAL);
        if is_logged {
            tracing::debug!(source, error, "source failed again");
        } else if failure.reason.halts() {
            tracing::error!(source, error, hint, "halted");
        } else {
            tracing::warn!(
                source,
                error,
                hint,
                "source failed, restarting from checkpoint"
            );
        }
        if !is_logged {
            seen.logged = Some((error.clone(), Instant::now()));
        }
    }
}

fn failure(err: &SourceError, recovery: &Recovery) -> Failure {
    Failure {
        reason: recovery.reason,
        error: cli::chain(err),
        hint: recovery.hint,
    }
}
