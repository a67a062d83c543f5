//! Truncates what was published, now and then, and says what keeps it from that.

use std::convert::Infallible;

use crate::{
    config::SourceConfig,
    ops::status::{SharedStatus, Warning, WarningReason},
    postgres::{
        leader::Leadership,
        rotation::{BlockedPartition, RotationReport, rotate},
    },
};

/// Truncates partitions of a source's outbox, now and then, for as long as it is polled. A table that
/// others made is left to them: who else reads it is not known here.
pub(super) async fn keep_truncating(
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
        tokio::time::sleep(config.rotation_interval).await;
        let mut rotation = RotationReport::default();
        let result = rotate(config, leadership, &mut rotation).await;
        let RotationReport { truncated, blocked } = rotation;
        if !truncated.is_empty() {
            tracing::info!(source = %config.name, partitions = ?truncated, "truncated");
        }
        let warning = match result {
            Err(err) => Some(Warning {
                reason: WarningReason::Truncation,
                message: format!("truncation failed: {}", cli::chain(&err)),
                hint: err.hint().to_owned(),
            }),
            Ok(()) => blocked.as_ref().map(Warning::from),
        };
        // Logged once: nothing is lost, the table grows.
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
                "{partition} is not truncated: source {source} has not published all of it, and no relay has led that \
                 source for {idle_for:.0?}"
            ),
            hint: format!(
                "start a relay with the source {source}, or, if it was renamed or given up, delete its row from \
                 relay_checkpoints"
            ),
        }
    }
}
