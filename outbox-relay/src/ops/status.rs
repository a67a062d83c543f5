//! The status of a source, for people, probes and metrics.

mod state;
mod view;
mod warning;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

pub(crate) use self::{
    state::{Reason, Role, State},
    view::View,
    warning::{Warning, WarningReason},
};
use crate::{
    kafka::{Counts, Histogram, Throttling},
    postgres::backlog::{Measurement, PendingRows},
};

/// A leader with pending rows whose checkpoint has not moved for this long is stalled.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// The period of the quantiles, in ticks.
const RECENT_TICKS: usize = 12;
/// A source that was throttled within this time is reported as throttled.
const RECENTLY_THROTTLED: Duration = Duration::from_secs(10);
/// The validity of a measurement of the database.
const MEASUREMENT_TTL: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(crate) struct SourceStatus {
    pub(crate) role: Role,
    /// The epoch of the last leadership of this relay.
    pub(crate) epoch: Option<i64>,
    /// Records acknowledged since the program started.
    pub(crate) published: u64,
    /// Records sent and not yet acknowledged.
    pub(crate) in_flight: u64,
    pub(crate) throttling: Throttling,
    /// How far the database's clock is ahead of this machine's, in seconds; 0 within half a minute.
    pub(crate) clock_skew_s: f64,
    pub(crate) parked_keys: usize,
    /// The failure that prevents publishing now.
    pub(crate) failure: Option<Failure>,
    /// True if the failure is a rejected row that the leader retries with the same sink.
    is_halted: bool,
    /// The last failure and when it occurred.
    last_failure: Option<(Failure, Instant)>,
    /// Restarts from the checkpoint by [`Reason`].
    restarts: [u64; Reason::ALL.len()],
    pub(crate) rejected: Rejected,
    /// The time of the last stored checkpoint.
    pub(crate) checkpoint_at: Option<Instant>,
    /// Truncated partitions. `None` if this relay does not truncate.
    pub(crate) truncations: Option<u64>,
    /// The reason why published partitions are not truncated.
    pub(crate) truncation_warning: Option<Warning>,
    /// The reason why the address of the database cannot be verified.
    pub(crate) address_warning: Option<Warning>,
    /// The last measurement of the database and when it was made.
    measured: Option<(Measurement, Instant)>,
    /// The dead letters of that measurement.
    dead_letters: i64,
    /// The start of a series of failed measurements, and its warning.
    unmeasured: Option<(Instant, Warning)>,
    /// The seq of a pending row, and the time when it was first seen.
    pending_since: Option<(i64, Instant)>,
    /// The time since which there are pending rows and the checkpoint has not moved.
    stalled_since: Option<Instant>,
    ticks: VecDeque<Tick>,
}

/// The reason why a source does not publish.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) error: String,
    pub(crate) hint: Option<&'static str>,
}

/// Records that Kafka rejected permanently, by outcome.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Rejected {
    pub(crate) halted: u64,
    pub(crate) parked: u64,
    pub(crate) dead_lettered: u64,
}

/// The counters at a moment of the last minute.
#[derive(Clone, Debug)]
struct Tick {
    at: Instant,
    published: u64,
    commit_to_ack: Counts,
    page_read: Counts,
}

/// The status of a source, shared by the pipeline, the monitor and the admin server.
#[derive(Clone, Debug)]
pub(crate) struct SharedStatus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    status: Mutex<SourceStatus>,
    commit_to_ack: Arc<Histogram>,
    page_read: Histogram,
}

impl SharedStatus {
    pub(crate) fn new(source: &str) -> Self {
        Self(Arc::new(Inner {
            name: source.to_owned(),
            status: Mutex::new(SourceStatus::new()),
            commit_to_ack: Arc::default(),
            page_read: Histogram::default(),
        }))
    }

    /// Returns the name of the source.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn get(&self) -> SourceStatus {
        self.lock().clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut SourceStatus)) {
        change(&mut self.lock());
    }

    /// Sets the role to leader. Call it only after the outbox was read.
    pub(crate) fn set_leader(&self) {
        self.lock().role = Role::Leader;
    }

    /// Sets how far the database's clock is ahead of this machine's, and logs it when it changes by more than a minute.
    pub(crate) fn set_clock_skew(&self, seconds: f64) {
        let before = std::mem::replace(&mut self.lock().clock_skew_s, seconds);
        if let Some(Warning { message, hint, .. }) = Warning::clock(seconds)
            && (before - seconds).abs() > 60.0
        {
            tracing::warn!(source = self.name(), hint, "{message}");
        }
    }

    /// Clears the failure of a row that halted the source, if there is one, and logs the recovery.
    pub(crate) fn end_halt(&self) {
        let mut status = self.lock();
        if std::mem::take(&mut status.is_halted) {
            // Nothing was expected to be published during the halt.
            status.stalled_since = None;
            drop(status);
            self.mark_recovered();
        }
    }

    /// Clears the failure and logs the recovery, unless a row halts the source.
    pub(crate) fn mark_recovered(&self) {
        let mut status = self.lock();
        if status.is_halted {
            return;
        }
        let failure = status.failure.take();
        drop(status);
        if let Some(failure) = failure {
            let reason = failure.reason.name();
            tracing::info!(source = self.name(), reason, "recovered");
        }
    }

    /// Returns the histogram of the time from row to acknowledgement.
    pub(crate) fn commit_to_ack(&self) -> &Arc<Histogram> {
        &self.0.commit_to_ack
    }

    /// Returns the histogram of the time to read a page.
    pub(crate) fn page_read(&self) -> &Histogram {
        &self.0.page_read
    }

    /// Records the counters of now, from which rates and quantiles are computed. Call it every few seconds.
    pub(crate) fn record_tick(&self) {
        let (commit_to_ack, page_read) = (self.0.commit_to_ack.counts(), self.0.page_read.counts());
        let mut status = self.lock();
        if status.ticks.len() == RECENT_TICKS {
            status.ticks.pop_front();
        }
        let tick = Tick {
            at: Instant::now(),
            published: status.published,
            commit_to_ack,
            page_read,
        };
        status.ticks.push_back(tick);
    }

    fn lock(&self) -> MutexGuard<'_, SourceStatus> {
        self.0.status.lock()
    }
}

impl SourceStatus {
    fn new() -> Self {
        Self {
            role: Role::Starting,
            epoch: None,
            published: 0,
            in_flight: 0,
            throttling: Throttling::default(),
            clock_skew_s: 0.0,
            parked_keys: 0,
            failure: None,
            is_halted: false,
            last_failure: None,
            restarts: Default::default(),
            rejected: Rejected::default(),
            checkpoint_at: None,
            truncations: None,
            truncation_warning: None,
            address_warning: None,
            pending_since: None,
            measured: None,
            dead_letters: 0,
            unmeasured: None,
            stalled_since: None,
            ticks: VecDeque::new(),
        }
    }

    /// Records a rejected row that is retried with the same sink until [`SharedStatus::end_halt`].
    pub(crate) fn record_halt(&mut self, failure: Failure) {
        self.is_halted = true;
        self.restarts[failure.reason as usize] += 1;
        self.last_failure = Some((failure.clone(), Instant::now()));
        self.failure = Some(failure);
    }

    /// Records a failure after which the source restarts from the checkpoint.
    pub(crate) fn record_restart(&mut self, failure: Failure) {
        self.role = Role::Starting;
        self.is_halted = false;
        self.in_flight = 0;
        self.stalled_since = None;
        self.truncation_warning = None;
        self.address_warning = None;
        self.restarts[failure.reason as usize] += 1;
        self.last_failure = Some((failure.clone(), Instant::now()));
        self.failure = Some(failure);
    }

    pub(crate) fn record_measurement(&mut self, measured: Measurement) {
        let now = Instant::now();
        let PendingRows {
            newest_seq,
            published_seq,
            ..
        } = measured.pending;
        let still_pending = self.pending_since.filter(|(seq, _)| *seq > published_seq);
        self.pending_since =
            still_pending.or_else(|| (newest_seq > published_seq).then_some((newest_seq, now)));
        let before = self.measured.take();
        let unmoved_since = before.and_then(|(before, at)| {
            let is_unmoved =
                before.checkpoint == measured.checkpoint && at.elapsed() < MEASUREMENT_TTL;
            is_unmoved.then_some(at)
        });
        let is_stalled = self.role == Role::Leader && measured.pending.rows > 0;
        self.stalled_since = unmoved_since.filter(|_| is_stalled).map(|unmoved_since| {
            // The rows may have been committed after the last measurement.
            let age = Duration::try_from_secs_f64(self.oldest_pending_age_s(&measured.pending));
            let pending_since = age.ok().and_then(|age| now.checked_sub(age));
            let since = unmoved_since.max(pending_since.unwrap_or(now));
            self.stalled_since.unwrap_or(since)
        });
        self.parked_keys = usize::try_from(measured.rejections.parked_keys).unwrap_or(0);
        self.dead_letters = measured.rejections.dead_letters;
        self.unmeasured = None;
        let stored_at = measured.checkpoint_age.and_then(|age| now.checked_sub(age));
        self.checkpoint_at = self.checkpoint_at.max(stored_at);
        self.measured = Some((measured, now));
    }

    pub(crate) fn record_measurement_failure(&mut self, error: &str, hint: &str) {
        let since = self.unmeasured.take().map(|(since, _)| since);
        let warning = Warning {
            reason: WarningReason::Unmeasured,
            message: format!("failed to measure the backlog: {error}"),
            hint: hint.to_owned(),
        };
        self.unmeasured = Some((since.unwrap_or_else(Instant::now), warning));
    }

    /// Returns true for a leader that publishes and for a standby.
    fn is_ready(&self) -> bool {
        self.failure.is_none()
            && self.stalled_for().is_none()
            && matches!(self.role, Role::Leader | Role::Standby)
    }

    /// Returns how long there are pending rows and no acknowledgement, once that exceeds [`STALLED_AFTER`].
    fn stalled_for(&self) -> Option<Duration> {
        let length = self.stalled_since?.elapsed();
        (length > STALLED_AFTER).then_some(length)
    }

    /// Returns the problems of a source that publishes.
    fn warnings(&self) -> Vec<Warning> {
        let rows = self
            .recent_measurement()
            .and_then(|(measured, _)| measured.unpublishable.as_ref())
            .map(Warning::from);
        // A source whose database fails already reports that.
        let is_reported =
            matches!(&self.failure, Some(failure) if failure.reason == Reason::Database);
        let unmeasured = self.unmeasured.as_ref().filter(|_| !is_reported);
        let unmeasured = unmeasured.filter(|(since, _)| since.elapsed() > MEASUREMENT_TTL);
        let throttled = (self.throttling.until)
            .filter(|until| until.elapsed() < RECENTLY_THROTTLED)
            .map(|_| Warning::throttled(self.throttling.total));
        rows.into_iter()
            .chain(throttled)
            .chain(Warning::clock(self.clock_skew_s))
            .chain(self.truncation_warning.clone())
            .chain(self.address_warning.clone())
            .chain(unmeasured.map(|(_, warning)| warning.clone()))
            .collect()
    }

    /// Returns the last measurement and its age, while it is valid.
    fn recent_measurement(&self) -> Option<(&Measurement, Duration)> {
        let (measured, at) = self.measured.as_ref()?;
        (at.elapsed() < MEASUREMENT_TTL).then(|| (measured, at.elapsed()))
    }

    /// Returns the age of the oldest pending row in seconds. For a table without a creation time it is a lower bound.
    fn oldest_pending_age_s(&self, pending: &PendingRows) -> f64 {
        let pending_since = self.pending_since.filter(|_| pending.rows > 0);
        let seen = || pending_since.map_or(0.0, |(_, since)| since.elapsed().as_secs_f64());
        pending.oldest_age_s.unwrap_or_else(seen)
    }

    /// Returns the records published per second since the last tick but one.
    #[expect(clippy::cast_precision_loss)]
    fn published_per_s(&self) -> f64 {
        let Some(tick) = self.ticks.iter().rev().take(2).next_back() else {
            return 0.0;
        };
        let published = self.published.saturating_sub(tick.published);
        published as f64 / tick.at.elapsed().as_secs_f64().max(1.0)
    }

    fn state(&self) -> State {
        let pending = self
            .recent_measurement()
            .map_or(0, |(measured, _)| measured.pending.rows);
        match self.role {
            Role::Stopped => State::Stopped,
            _ if self
                .failure
                .as_ref()
                .is_some_and(|failure| failure.reason.halts()) =>
            {
                State::Halted
            }
            _ if self.failure.is_some() || self.stalled_for().is_some() => State::Stalled,
            Role::Starting => State::Starting,
            Role::Standby => State::Standby,
            Role::Leader if self.parked_keys > 0 => State::Parked,
            Role::Leader if pending > 0 || self.published_per_s() > 0.0 => State::Publishing,
            Role::Leader => State::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rows: i64, checkpoint: &str) -> Measurement {
        Measurement {
            pending: PendingRows {
                rows,
                ..PendingRows::default()
            },
            checkpoint: checkpoint.to_owned(),
            ..Measurement::default()
        }
    }

    #[test]
    fn a_leader_with_pending_rows_and_an_unmoved_checkpoint_is_stalled() {
        let shared = SharedStatus::new("test");
        let stall = |status: &mut SourceStatus| {
            status.role = Role::Leader;
            for _ in 0..2 {
                status.record_measurement(measured(3, "1:1: 0"));
            }
            let since = status.stalled_since.unwrap();
            status.stalled_since = since.checked_sub(STALLED_AFTER);
        };
        shared.update(stall);
        let view = shared.view();
        assert_eq!((view.state, view.ready), (State::Stalled, false));
        let error = view.error.unwrap();
        assert!(
            error.starts_with("3 pending rows, and none acknowledged for "),
            "{error}"
        );
        for moved in [measured(3, "2:2: 3"), measured(0, "2:2: 3")] {
            shared.update(|status| status.record_measurement(moved));
            let view = shared.view();
            assert!(view.ready && view.error.is_none());
            shared.update(stall);
        }
        // A standby is ready although the leader is stalled.
        shared.update(|status| {
            status.role = Role::Standby;
            let mut measured = measured(3, "1:1: 0");
            measured.leader = Some("another".into());
            status.record_measurement(measured);
        });
        let view = shared.view();
        assert_eq!(view.state, State::Standby);
        assert_eq!(view.leader.as_deref(), Some("another"));
        // A measurement from before the takeover names the former leader.
        shared.update(|status| status.role = Role::Leader);
        assert_eq!(shared.view().leader, None);
    }

    #[test]
    fn the_age_of_a_row_without_a_creation_time_counts_from_when_it_was_first_seen() {
        let mut status = SourceStatus::new();
        let mut at = |newest_seq, published_seq| {
            let pending = PendingRows {
                rows: newest_seq - published_seq,
                newest_seq,
                published_seq,
                ..PendingRows::default()
            };
            let measured = Measurement {
                pending,
                ..Measurement::default()
            };
            status.record_measurement(measured);
            if let Some((_, since)) = &mut status.pending_since {
                *since = since.checked_sub(Duration::from_secs(5)).unwrap();
            }
            Duration::from_secs_f64(status.oldest_pending_age_s(&pending)).as_secs()
        };
        // Five seconds pass after each.
        assert_eq!(
            [at(3, 3), at(9, 3), at(12, 8), at(12, 9), at(12, 12)],
            [0, 5, 10, 5, 0]
        );
    }

    #[test]
    fn a_failed_measurement_is_reported_unless_the_database_fails_anyway() {
        let mut status = SourceStatus::new();
        status.record_measurement_failure("no answer", "Check it.");
        let (since, _) = status.unmeasured.as_mut().unwrap();
        *since = since.checked_sub(MEASUREMENT_TTL * 2).unwrap();
        assert_eq!(status.warnings()[0].reason, WarningReason::Unmeasured);
        for (reason, warnings) in [(Reason::Kafka, 1), (Reason::Database, 0)] {
            status.record_restart(Failure {
                reason,
                error: "down".into(),
                hint: None,
            });
            assert_eq!(status.warnings().len(), warnings, "{reason:?}");
        }
    }

    #[test]
    fn halted_needs_an_operator_and_stalled_does_not() {
        let shared = SharedStatus::new("test");
        for (reason, state) in [
            (Reason::Kafka, State::Stalled),
            (Reason::Rejected, State::Halted),
        ] {
            shared.update(|status| {
                status.record_restart(Failure {
                    reason,
                    error: "the error".into(),
                    hint: None,
                });
            });
            assert_eq!(shared.view().state, state);
        }
        shared.update(|status| {
            (status.role, status.failure, status.parked_keys) = (Role::Leader, None, 1);
        });
        let view = shared.view();
        assert_eq!((view.state, view.ready), (State::Parked, true));
        assert_eq!(view.last_error.as_deref(), Some("the error"));
        assert_eq!((view.restarts["kafka"], view.restarts["rejected"]), (1, 1));
    }
}
