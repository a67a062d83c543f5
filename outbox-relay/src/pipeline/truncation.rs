//! Truncates published partitions periodically, and reports what prevents it.

use std::convert::Infallible;

use crate::{
    config::SourceConfig,
    ops::status::{SharedStatus, Warning, WarningReason},
    postgres::{
        leader::Leadership,
        truncation::{BlockedPartition, TruncationReport, truncate_published_partitions},
    },
};

/// Truncates published partitions of a source's outbox every `truncation_interval`, for as long as it is polled. A mapped table
/// is never truncated: it may have other readers.
pub(super) async fn run_truncation(
    config: &SourceConfig,
    leadership: &Leadership,
    status: &SharedStatus,
) -> Infallible {
    if !config.mapping.is_own() {
        return std::future::pending().await;
    }
    status.update(|status| _ = status.truncations.get_or_insert(0));
    let mut last_warning = None;
    loop {
        tokio::time::sleep(config.truncation_interval).await;
        let mut report = TruncationReport::default();
        let result = truncate_published_partitions(config, leadership, &mut report).await;
        let TruncationReport { truncated, blocked } = report;
        if !truncated.is_empty() {
            tracing::info!(source = %config.name, partitions = ?truncated, "partitions truncated");
        }
        let warning = match result {
            Err(err) => Some(Warning {
                reason: WarningReason::Truncation,
                message: format!(
                    "failed to truncate published partitions: {}",
                    cli::chain(&err)
                ),
                hint: err.hint().to_owned(),
            }),
            Ok(()) => blocked.as_ref().map(Warning::from),
        };
        // Logged once: nothing is lost, but the table grows.
        if warning != last_warning
            && let Some(Warning { message, hint, .. }) = &warning
        {
            tracing::warn!(source = %config.name, hint, "{message}");
        }
        last_warning.clone_from(&warning);
        status.update(|status| {
            *status.truncations.get_or_insert(0) += truncated.len() as u64;
            status.truncation_warning = warning;
        });
    }
}

impl From<&BlockedPartition> for Warning {
    fn from(kept: &BlockedPartition) -> Self {
        let BlockedPartition {
            partition,
            source,
            idle_for,
        } = kept;
        Self {
            reason: WarningReason::Truncation,
            message: format!(
                "{partition} cannot be truncated: source {source} has not published all of it and has had no leader for \
                 {idle_for:.0?}"
            ),
            hint: format!(
                "Start a relay with source {source}. If the source was renamed or removed, delete its row from \
                 relay_checkpoints."
            ),
        }
    }
}
