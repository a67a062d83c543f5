//! The serialized status of a source.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Reason, Rejected, Role, SharedStatus, State, Tick, Warning};
use crate::kafka::{Counts, Histogram, quantile_s};

/// A source in `/status`. Units are in the field names: seconds and bytes. [`SourceStatus`](super::SourceStatus) documents
/// the fields that it shares.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View {
    pub(crate) source: String,
    pub(crate) role: Role,
    pub(crate) state: State,
    /// True if `/readyz` counts the source as ready.
    pub(crate) ready: bool,
    pub(crate) epoch: Option<i64>,
    /// The session of the leader in Postgres, if this relay is a standby.
    pub(crate) leader: Option<String>,
    pub(crate) published: u64,
    /// Records per second over the last 5 to 10 s.
    pub(crate) published_per_s: f64,
    pub(crate) in_flight: u64,
    /// How long the brokers throttled this relay because of a quota, since it started.
    pub(crate) throttled_s: f64,
    /// How far the database's clock is ahead of this machine's; 0 within half a minute.
    pub(crate) clock_skew_s: f64,
    /// Number of times that this relay was fenced because another one publishes the source.
    pub(crate) fenced: u64,
    /// Rows committed and not published. `None` while the database does not answer.
    pub(crate) pending_rows: Option<i64>,
    /// True if `pending_rows` is an estimate, because there are too many to count.
    pub(crate) pending_is_estimate: bool,
    /// The age of the oldest pending row; 0 if there is none.
    pub(crate) oldest_pending_age_s: Option<f64>,
    /// The time from the row's `created_at` to the acknowledgement by Kafka.
    pub(crate) commit_to_ack: Durations,
    /// The time to read a page of rows.
    pub(crate) page_read: Durations,
    pub(crate) parked_keys: usize,
    /// Events in `relay_dead_letters`, counted up to 10,000.
    pub(crate) dead_letters: Option<i64>,
    pub(crate) rejected: Rejected,
    pub(crate) restarts: BTreeMap<&'static str, u64>,
    pub(crate) checkpoint_age_s: Option<f64>,
    /// The size of the outbox with its indexes.
    pub(crate) outbox_bytes: Option<i64>,
    pub(crate) truncations: Option<u64>,
    /// The reason why the source does not publish now.
    pub(crate) error: Option<String>,
    pub(crate) hint: Option<&'static str>,
    /// Problems of a source that publishes.
    pub(crate) warnings: Vec<Warning>,
    /// Rows without seq or transaction id, which are never published.
    pub(crate) unpublishable_rows: Option<i64>,
    /// The last error, also after recovery.
    pub(crate) last_error: Option<String>,
    pub(crate) last_error_age_s: Option<f64>,
}

/// Durations: count and sum since the start of the program, and quantiles of the last minute.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Durations {
    pub(crate) count: u64,
    pub(crate) sum_s: f64,
    pub(crate) p50_s: Option<f64>,
    pub(crate) p99_s: Option<f64>,
}

impl SharedStatus {
    /// Returns the serializable status of now.
    pub(crate) fn view(&self) -> View {
        let status = self.get();
        let oldest = status.ticks.front();
        let durations =
            |histogram, before: fn(&Tick) -> &Counts| durations(histogram, oldest.map(before));
        let recent = status.recent_measurement();
        let pending = recent.map(|(measured, _)| measured.pending);
        let restarts = Reason::ALL.map(|reason| (reason.name(), status.restarts[reason as usize]));
        let error = status.failure.as_ref().map(|failure| failure.error.clone());
        let error = error.or_else(|| {
            let length = status.stalled_for()?;
            let rows = pending?.rows;
            let (plural, seconds) = (if rows == 1 { "" } else { "s" }, length.as_secs());
            Some(format!(
                "{rows} pending row{plural}, and none acknowledged for {seconds} s"
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
            throttled_s: status.throttling.total.as_secs_f64(),
            clock_skew_s: status.clock_skew_s,
            fenced: status.restarts[Reason::Fenced as usize],
            pending_rows: pending.map(|pending| pending.rows),
            pending_is_estimate: pending.is_some_and(|pending| pending.is_estimate),
            oldest_pending_age_s: (pending.as_ref())
                .map(|pending| status.oldest_pending_age_s(pending)),
            commit_to_ack: durations(&self.0.commit_to_ack, |tick| &tick.commit_to_ack),
            page_read: durations(&self.0.page_read, |tick| &tick.page_read),
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

fn durations(histogram: &Histogram, before: Option<&Counts>) -> Durations {
    let counts = histogram.counts();
    let recent = std::array::from_fn(|bucket| {
        counts[bucket].saturating_sub(before.map_or(0, |before| before[bucket]))
    });
    Durations {
        count: counts.iter().sum(),
        sum_s: histogram.sum_s(),
        p50_s: quantile_s(&recent, 0.5),
        p99_s: quantile_s(&recent, 0.99),
    }
}
