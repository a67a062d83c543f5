//! What a source is doing, for people, probes and whoever collects figures.

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
    dead_letters::storage::RejectionCounts,
    kafka::{Counts, Histogram},
    postgres::backlog::{Measurement, PendingRows},
};

/// A leader whose checkpoint has not moved for so long, while rows are due, is not well.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// How much of the past the quantiles are of, in ticks.
const RECENT_TICKS: usize = 12;
/// What was measured in the database is told for so long after the last answer.
const MEASURED_FOR: Duration = Duration::from_secs(30);

/// What is known of a source.
#[derive(Clone, Debug)]
pub(crate) struct SourceStatus {
    /// What it does.
    pub(crate) role: Role,
    /// The number of its leadership, once it has led.
    pub(crate) epoch: Option<i64>,
    /// Records acknowledged since the program started.
    pub(crate) published: u64,
    /// Records sent and not yet acknowledged.
    pub(crate) in_flight: u64,
    /// Keys that wait because Kafka rejected an event of theirs.
    pub(crate) parked_keys: usize,
    /// What keeps it from publishing, while something does.
    pub(crate) failure: Option<Failure>,
    /// What did so last, and when it began to.
    last_failure: Option<(Failure, Instant)>,
    /// How often publishing began anew, by [`Reason`].
    restarts: [u64; Reason::ALL.len()],
    /// Records that Kafka rejected for good, by what became of them.
    pub(crate) rejected: Rejected,
    /// When the checkpoint was stored last.
    pub(crate) checkpoint_at: Option<Instant>,
    /// Partitions that were emptied; none where nobody empties them.
    pub(crate) truncations: Option<u64>,
    /// Why partitions that were published are not truncated.
    pub(crate) truncation_warning: Option<Warning>,
    /// What the database said when it was asked last, and when that was.
    measured: Option<(Measurement, Instant)>,
    /// Dead letters at that time.
    dead_letters: i64,
    /// Since when it gives no answer, and why.
    unmeasured: Option<(Instant, Warning)>,
    /// The newest row of some time ago, which is not published yet, and when that was.
    waiting: Option<(i64, Instant)>,
    /// Since when rows are due and the checkpoint has not moved.
    stuck_since: Option<Instant>,
    ticks: VecDeque<Tick>,
}

/// What keeps a source from publishing.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) error: String,
    /// What to do about it.
    pub(crate) hint: Option<&'static str>,
}

/// Records that Kafka rejected for good, by what became of them.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Rejected {
    pub(crate) halted: u64,
    pub(crate) parked: u64,
    pub(crate) dead_lettered: u64,
}

/// A moment of the last minute.
#[derive(Clone, Debug)]
struct Tick {
    at: Instant,
    published: u64,
    commit_to_ack: Counts,
    page_read: Counts,
}

/// The status of a source, shared with those who show it.
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

    /// The source's name.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// What is known now.
    pub(crate) fn get(&self) -> SourceStatus {
        self.lock().clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut SourceStatus)) {
        change(&mut self.lock());
    }

    /// This relay leads, and has read the outbox.
    pub(crate) fn leads(&self) {
        self.lock().role = Role::Leader;
    }

    /// What kept the source from publishing is gone.
    pub(crate) fn recovered(&self) {
        let failure = self.lock().failure.take();
        if let Some(failure) = failure {
            let reason = failure.reason.name();
            tracing::info!(source = self.name(), reason, "recovered, publishes again");
        }
    }

    /// Where the time from row to acknowledgement is counted.
    pub(crate) fn commit_to_ack(&self) -> &Arc<Histogram> {
        &self.0.commit_to_ack
    }

    /// Where the time that a page takes to read is counted.
    pub(crate) fn page_read(&self) -> &Histogram {
        &self.0.page_read
    }

    /// Remembers this moment, so that what comes can be told from what was. To be called every few
    /// seconds.
    pub(crate) fn tick(&self) {
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
            parked_keys: 0,
            failure: None,
            last_failure: None,
            restarts: Default::default(),
            rejected: Rejected::default(),
            checkpoint_at: None,
            truncations: None,
            truncation_warning: None,
            waiting: None,
            measured: None,
            dead_letters: 0,
            unmeasured: None,
            stuck_since: None,
            ticks: VecDeque::new(),
        }
    }

    /// Publishing begins anew, for this reason.
    pub(crate) fn restart(&mut self, failure: Failure) {
        self.role = Role::Starting;
        self.in_flight = 0;
        self.stuck_since = None;
        self.truncation_warning = None;
        self.restarts[failure.reason as usize] += 1;
        self.last_failure = Some((failure.clone(), Instant::now()));
        self.failure = Some(failure);
    }

    /// Takes over what was measured in the database.
    pub(crate) fn measured(&mut self, measured: Measurement, dead_lettered: RejectionCounts) {
        let now = Instant::now();
        let PendingRows {
            newest_seq,
            done_seq,
            ..
        } = measured.pending;
        let waiting = self.waiting.filter(|(seq, _)| *seq > done_seq);
        self.waiting = waiting.or_else(|| (newest_seq > done_seq).then_some((newest_seq, now)));
        let before = self.measured.take();
        let stands_still = before.is_some_and(|(before, at)| {
            before.checkpoint == measured.checkpoint && at.elapsed() < MEASURED_FOR
        });
        let is_stuck = stands_still && self.role == Role::Leader && measured.pending.rows > 0;
        self.stuck_since = is_stuck.then(|| self.stuck_since.unwrap_or(now));
        self.parked_keys = usize::try_from(dead_lettered.parked_keys).unwrap_or(0);
        self.dead_letters = dead_lettered.dead_letters;
        self.unmeasured = None;
        let stored_at = measured.checkpoint_age.and_then(|age| now.checked_sub(age));
        self.checkpoint_at = self.checkpoint_at.max(stored_at);
        self.measured = Some((measured, now));
    }

    /// The database could not be asked.
    pub(crate) fn not_measured(&mut self, error: String, hint: &str) {
        let since = self.unmeasured.take().map(|(since, _)| since);
        let warning = Warning {
            reason: WarningReason::Unmeasured,
            message: format!("what waits can't be measured: {error}"),
            hint: hint.to_owned(),
        };
        self.unmeasured = Some((since.unwrap_or_else(Instant::now), warning));
    }

    /// Whether all is well: it publishes, or stands by for one that does.
    fn is_ready(&self) -> bool {
        self.failure.is_none()
            && self.stalled_for().is_none()
            && matches!(self.role, Role::Leader | Role::Standby)
    }

    /// For how long rows are due and nothing was acknowledged, where that is too long.
    fn stalled_for(&self) -> Option<Duration> {
        let length = self.stuck_since?.elapsed();
        (length > STALLED_AFTER).then_some(length)
    }

    /// What needs somebody although the source publishes.
    fn warnings(&self) -> Vec<Warning> {
        let rows = self
            .recent()
            .and_then(|(measured, _)| measured.unpublishable.as_ref())
            .map(Warning::from);
        let unmeasured = self.unmeasured.as_ref();
        let unmeasured = unmeasured.filter(|(since, _)| since.elapsed() > MEASURED_FOR);
        rows.into_iter()
            .chain(self.truncation_warning.clone())
            .chain(unmeasured.map(|(_, warning)| warning.clone()))
            .collect()
    }

    /// What was measured last, and how long ago, unless that is too long.
    fn recent(&self) -> Option<(&Measurement, Duration)> {
        let (measured, at) = self.measured.as_ref()?;
        (at.elapsed() < MEASURED_FOR).then(|| (measured, at.elapsed()))
    }

    /// The age of the oldest row that is not published, in seconds. Where rows don't tell when they were written
    /// it is at least as old as this.
    fn oldest_pending_age_s(&self, pending: &PendingRows) -> f64 {
        let waiting = self.waiting.filter(|_| pending.rows > 0);
        let seen = || waiting.map_or(0.0, |(_, since)| since.elapsed().as_secs_f64());
        pending.oldest_age_s.unwrap_or_else(seen)
    }

    /// Records published a second, since the last tick but one.
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
            .recent()
            .map_or(0, |(measured, _)| measured.pending.rows);
        match self.role {
            Role::Stopped => State::Stopped,
            _ if self.failure.as_ref().is_some_and(|t| t.reason.halts()) => State::Halted,
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
    fn a_leader_is_stalled_when_rows_are_due_and_its_checkpoint_stays() {
        let shared = SharedStatus::new("test");
        let stall = |status: &mut SourceStatus| {
            status.role = Role::Leader;
            for _ in 0..2 {
                status.measured(measured(3, "1:1: 0"), RejectionCounts::default());
            }
            let since = status.stuck_since.unwrap();
            status.stuck_since = since.checked_sub(STALLED_AFTER);
        };
        shared.update(stall);
        let view = shared.view();
        assert_eq!((view.state, view.ready), (State::Stalled, false));
        assert!(view.error.unwrap().starts_with("3 rows are due"));
        for moved in [measured(3, "2:2: 3"), measured(0, "2:2: 3")] {
            shared.update(|status| status.measured(moved, RejectionCounts::default()));
            let view = shared.view();
            assert!(view.ready && view.error.is_none());
            shared.update(stall);
        }
        // A standby of a leader that stalls is well.
        shared.update(|status| {
            status.role = Role::Standby;
            let mut measured = measured(3, "1:1: 0");
            measured.leader = Some("another".into());
            status.measured(measured, RejectionCounts::default());
        });
        let view = shared.view();
        assert_eq!(view.state, State::Standby);
        assert_eq!(view.leader.as_deref(), Some("another"));
        // What was measured before it took over is of no use any more.
        shared.update(|status| status.role = Role::Leader);
        assert_eq!(shared.view().leader, None);
    }

    #[test]
    fn rows_that_don_t_tell_their_age_are_as_old_as_since_they_were_seen() {
        let mut status = SourceStatus::new();
        let mut at = |newest_seq, done_seq| {
            let pending = PendingRows {
                rows: newest_seq - done_seq,
                newest_seq,
                done_seq,
                ..PendingRows::default()
            };
            let measured = Measurement {
                pending,
                ..Measurement::default()
            };
            status.measured(measured, RejectionCounts::default());
            if let Some((_, since)) = &mut status.waiting {
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
    fn what_needs_somebody_is_told_from_what_passes() {
        let shared = SharedStatus::new("test");
        for (reason, state) in [
            (Reason::Kafka, State::Stalled),
            (Reason::Rejected, State::Halted),
        ] {
            shared.update(|status| {
                status.restart(Failure {
                    reason,
                    error: "so it is".into(),
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
        assert_eq!(view.last_error.as_deref(), Some("so it is"));
        assert_eq!((view.restarts["kafka"], view.restarts["rejected"]), (1, 1));
    }
}
