//! Derives the consumer's state from its progress, outside of the consumer's thread, which may hang.

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    handle::{ConsumerState, Shared},
    progress::{ACTIVITY_LIMIT, Observations, PartitionProgress},
};

const INTERVAL: Duration = Duration::from_secs(1);
/// The limit for evidence of a partition: a record applied, or its end returned by Kafka.
const CONFIRMATION_LIMIT: Duration = Duration::from_secs(10);
/// The limit for a record that Kafka has and the consumer does not apply.
const PENDING_LIMIT: Duration = Duration::from_secs(10);
/// The same limit while the consumer advances in other partitions. librdkafka returns a megabyte of each
/// partition in turn, so one waits while those of the others are applied.
const QUEUED_LIMIT: Duration = Duration::from_secs(60);

/// Sets the state until the consumer stops or `shutdown`. It is the only writer of the state.
pub(crate) async fn supervise(shared: Arc<Shared>, state: watch::Sender<ConsumerState>) {
    loop {
        let decided = {
            let observations = shared.progress.observations();
            decide(&observations, &state.borrow(), Instant::now())
        };
        let has_stopped = matches!(decided, ConsumerState::Stopped(_));
        set_state(&state, decided, &shared.config.name);
        if has_stopped {
            return;
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.progress.changed.notified() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Sets the state, and logs it if it changed.
fn set_state(state: &watch::Sender<ConsumerState>, decided: ConsumerState, projection: &str) {
    state.send_if_modified(|now| {
        if *now == decided {
            return false;
        }
        match &decided {
            ConsumerState::Failing(reason) => {
                tracing::warn!(%projection, %reason, "consumer failing, retrying");
            }
            ConsumerState::Stopped(reason) => {
                tracing::error!(%projection, %reason, "consumer stopped");
            }
            ConsumerState::Starting => tracing::info!(%projection, "consumer starting"),
            ConsumerState::Running => tracing::info!(%projection, "consumer running"),
        }
        *now = decided;
        true
    });
}

/// Decides the state. The reasons contain limits and no elapsed times: a state that lasts is logged once.
fn decide(progress: &Observations, was: &ConsumerState, now: Instant) -> ConsumerState {
    if let Some(reason) = &progress.stopped {
        return ConsumerState::Stopped(reason.clone());
    }
    if let Some(reason) = find_failure(progress, now) {
        return ConsumerState::Failing(reason);
    }
    let is_starting = *was == ConsumerState::Starting;
    let not_yet = |reason: &str| match is_starting {
        true => ConsumerState::Starting,
        false => ConsumerState::Failing(reason.to_owned()),
    };
    if progress.joined_at.is_none() {
        return not_yet("waiting for the consumer group to assign partitions");
    }
    // A partition that was just assigned does not interrupt a running consumer.
    if *was != ConsumerState::Running && !is_confirmed(progress) {
        return not_yet("waiting for the first response to a read from Kafka");
    }
    ConsumerState::Running
}

/// Returns whether Kafka has answered a read of every partition.
fn is_confirmed(progress: &Observations) -> bool {
    let is_read = |at: &PartitionProgress| at.last_evidence().is_some() || at.pending.is_some();
    match progress.partitions.is_empty() {
        true => progress.idle_read_at.is_some(),
        false => progress.partitions.values().all(is_read),
    }
}

fn find_failure(progress: &Observations, now: Instant) -> Option<String> {
    if let Some(error) = &progress.group_error {
        return Some(error.reason.clone());
    }
    if let Some(error) = &progress.error
        && progress.oldest_evidence().is_none_or(|at| at <= error.at)
    {
        return Some(error.reason.clone());
    }
    let (activity, since) = progress.activity;
    if now.duration_since(since) > ACTIVITY_LIMIT {
        let limit = ACTIVITY_LIMIT.as_secs();
        let activity = activity.describe();
        return Some(format!(
            "no progress for more than {limit} s while {activity}"
        ));
    }
    if progress.joined_at.is_none() {
        return progress.monitor_error.clone();
    }
    find_unapplied(progress, now).or_else(|| find_unconfirmed(progress, now))
}

fn find_unapplied(progress: &Observations, now: Instant) -> Option<String> {
    let last_advance = progress.partitions.values().filter_map(|at| at.advanced_at);
    let is_advancing = last_advance
        .max()
        .is_some_and(|at| now.duration_since(at) <= PENDING_LIMIT);
    let limit = match is_advancing {
        true => QUEUED_LIMIT,
        false => PENDING_LIMIT,
    };
    progress.partitions.iter().find_map(|(partition, at)| {
        let pending = at.pending?;
        let since = at.advanced_at.max(Some(pending.since))?;
        (now.duration_since(since) > limit).then(|| {
            format!(
                "records from offset {} of partition {partition} are not applied",
                pending.offset
            )
        })
    })
}

fn find_unconfirmed(progress: &Observations, now: Instant) -> Option<String> {
    let is_old = |at: Instant| now.duration_since(at) > CONFIRMATION_LIMIT;
    let limit = CONFIRMATION_LIMIT.as_secs();
    let cause = progress.monitor_error.as_ref();
    let cause = cause.map_or_else(String::new, |error| format!(": {error}"));
    if progress.partitions.is_empty() {
        return progress
            .idle_read_at
            .or(progress.joined_at)
            .is_some_and(is_old)
            .then(|| format!("no response from Kafka for more than {limit} s{cause}"));
    }
    progress.partitions.iter().find_map(|(partition, at)| {
        let last = at.last_evidence().unwrap_or(at.assigned_at);
        (at.pending.is_none() && is_old(last)).then(|| {
            format!(
                "no confirmation from Kafka for partition {partition} for more than {limit} s{cause}"
            )
        })
    })
}
