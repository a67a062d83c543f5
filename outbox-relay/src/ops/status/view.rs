//! What is shown of a source.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Reason, Rejected, Role, SharedStatus, State, Tick, Warning};
use crate::kafka::{Counts, Histogram, quantile_s};

/// A source, as `/status` has it. Seconds and bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View {
    /// The source's name.
    pub(crate) source: String,
    /// What it does.
    pub(crate) role: Role,
    /// The same, with how well it does it.
    pub(crate) state: State,
    /// Whether `/readyz` is content with it.
    pub(crate) ready: bool,
    /// The number of its leadership, once it has led.
    pub(crate) epoch: Option<i64>,
    /// Who leads, as the database knows it, where this relay stands by.
    pub(crate) leader: Option<String>,
    /// Records acknowledged since the program started.
    pub(crate) published: u64,
    /// The same a second, over the last five to ten.
    pub(crate) published_per_s: f64,
    /// Records sent and not yet acknowledged.
    pub(crate) in_flight: u64,
    /// Times that Kafka rejected this relay's records because another one publishes the source.
    pub(crate) fenced: u64,
    /// Rows committed and not published; none while the database does not answer.
    pub(crate) pending_rows: Option<i64>,
    /// They are too many to be counted.
    pub(crate) pending_is_estimate: bool,
    /// The age of the oldest of them; 0 if there is none.
    pub(crate) oldest_pending_age_s: Option<f64>,
    /// From the row's `created_at` to Kafka's acknowledgement.
    pub(crate) commit_to_ack: Times,
    /// How long a page of rows takes to read.
    pub(crate) page_read: Times,
    /// Keys that wait because Kafka rejected an event of theirs.
    pub(crate) parked_keys: usize,
    /// Events in `relay_dead_letters`, at most 10,000 of them.
    pub(crate) dead_letters: Option<i64>,
    /// Records that Kafka rejected for good, by what became of them.
    pub(crate) rejected: Rejected,
    /// How often publishing began anew, and why.
    pub(crate) restarts: BTreeMap<&'static str, u64>,
    /// How long ago the checkpoint was stored.
    pub(crate) checkpoint_age_s: Option<f64>,
    /// How large the outbox is.
    pub(crate) outbox_bytes: Option<i64>,
    /// Partitions that were emptied; none where nobody empties them.
    pub(crate) truncations: Option<u64>,
    /// Why it does not publish, while something keeps it from publishing.
    pub(crate) error: Option<String>,
    /// What to do about that.
    pub(crate) hint: Option<&'static str>,
    /// What is wrong although it publishes.
    pub(crate) warnings: Vec<Warning>,
    /// Rows that can never be published, of a table that takes such rows.
    pub(crate) unpublishable_rows: Option<i64>,
    /// What kept it from publishing last, also if it is recovered.
    pub(crate) last_error: Option<String>,
    /// How long ago that was.
    pub(crate) last_error_age_s: Option<f64>,
}

/// How long something takes: since the program started, and the quantiles of the last minute.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) sum_s: f64,
    pub(crate) p50_s: Option<f64>,
    pub(crate) p99_s: Option<f64>,
}

impl SharedStatus {
    /// What is shown of the source now.
    pub(crate) fn view(&self) -> View {
        let status = self.get();
        let oldest = status.ticks.front();
        let times = |histogram, before: fn(&Tick) -> &Counts| times(histogram, oldest.map(before));
        let recent = status.recent();
        let pending = recent.map(|(measured, _)| measured.pending);
        let restarts = Reason::ALL.map(|reason| (reason.name(), status.restarts[reason as usize]));
        let error = status.failure.as_ref().map(|failure| failure.error.clone());
        let error = error.or_else(|| {
            let length = status.stalled_for()?;
            let rows = pending?.rows;
            Some(format!(
                "{rows} rows are due, and none was acknowledged for {length:.0?}"
            ))
        });
        View {
            source: self.0.name.clone(),
            role: status.role,
            state: status.state(),
            ready: status.is_ready(),
            epoch: status.epoch,
            leader: recent
                .filter(|_| status.role == Role::Standby)
                .and_then(|(measured, _)| measured.leader.clone()),
            published: status.published,
            published_per_s: status.published_per_s(),
            in_flight: status.in_flight,
            fenced: status.restarts[Reason::Fenced as usize],
            pending_rows: pending.map(|pending| pending.rows),
            pending_is_estimate: pending.is_some_and(|pending| pending.is_estimate),
            oldest_pending_age_s: (pending.as_ref())
                .map(|pending| status.oldest_pending_age_s(pending)),
            commit_to_ack: times(&self.0.commit_to_ack, |tick| &tick.commit_to_ack),
            page_read: times(&self.0.page_read, |tick| &tick.page_read),
            parked_keys: status.parked_keys,
            dead_letters: recent.map(|_| status.dead_letters),
            rejected: status.rejected,
            restarts: restarts.into(),
            checkpoint_age_s: (status.checkpoint_at).map(|at| at.elapsed().as_secs_f64()),
            outbox_bytes: recent.map(|(measured, _)| measured.outbox_bytes),
            truncations: status.truncations,
            error,
            hint: status.failure.as_ref().and_then(|failure| failure.hint),
            warnings: status.warnings(),
            unpublishable_rows: recent.map(|(measured, _)| {
                let unpublishable = measured.unpublishable.as_ref();
                unpublishable.map_or(0, |unpublishable| unpublishable.rows)
            }),
            last_error: (status.last_failure.as_ref()).map(|(failure, _)| failure.error.clone()),
            last_error_age_s: (status.last_failure.as_ref())
                .map(|(_, at)| at.elapsed().as_secs_f64()),
        }
    }
}

fn times(histogram: &Histogram, before: Option<&Counts>) -> Times {
    let counts = histogram.counts();
    let recent = std::array::from_fn(|bucket| {
        counts[bucket].saturating_sub(before.map_or(0, |before| before[bucket]))
    });
    Times {
        count: counts.iter().sum(),
        sum_s: histogram.sum_s(),
        p50_s: quantile_s(&recent, 0.5),
        p99_s: quantile_s(&recent, 0.99),
    }
}
