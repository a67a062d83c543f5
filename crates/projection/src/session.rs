//! The session of a member of the consumer group, by which the group notices that a member has died.

use std::time::Duration;

use crate::ConsumerConfig;

/// The longest pause between two heartbeats. Their responses also tell members to rebalance, so a longer one would
/// delay each step of a rebalance.
const MAX_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the pause between two heartbeats: at least two may be lost before the session ends.
pub(crate) fn heartbeat_interval(session_timeout: Duration) -> Duration {
    (session_timeout / 3).min(MAX_HEARTBEAT_INTERVAL)
}

/// Describes that the brokers do not allow the session timeout, and what to do.
pub(crate) fn describe_rejection(config: &ConsumerConfig) -> String {
    format!(
        "failed to join consumer group {}: the brokers reject a session timeout of {} ms. \
         Set SESSION_TIMEOUT_MS to a value that group.min.session.timeout.ms and \
         group.max.session.timeout.ms of the brokers allow, and restart the service.",
        config.name,
        config.session_timeout.as_millis()
    )
}
