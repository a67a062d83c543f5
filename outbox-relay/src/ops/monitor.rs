//! Measures the backlog of a source every few seconds, also on a standby, so that there are metrics while no relay leads.

use std::{convert::Infallible, time::Duration};

use crate::{
    config::SourceConfig,
    dead_letters::storage::rejection_counts_sql,
    ops::status::{Role, SharedStatus},
    postgres::{
        backlog::{BacklogMonitor, Measurement},
        session::DatabaseError,
    },
};

const MEASURE_INTERVAL: Duration = Duration::from_secs(5);

/// Measures for as long as it is polled.
pub(crate) async fn run_monitor(config: SourceConfig, status: SharedStatus) -> Infallible {
    let mut backlog = None;
    loop {
        status.record_tick();
        match measure(&mut backlog, &config, &status).await {
            Ok(measured) => status.update(|status| status.record_measurement(measured)),
            Err(err) => {
                // Only debug: the leader or standby mostly logs the same failure.
                let error = cli::chain(&err);
                tracing::debug!(source = %config.name, error, "failed to measure the backlog");
                status.update(|status| status.record_measurement_failure(&error, err.hint()));
            }
        }
        tokio::time::sleep(MEASURE_INTERVAL).await;
    }
}

/// Keeps the session only after a success.
async fn measure(
    kept: &mut Option<BacklogMonitor>,
    config: &SourceConfig,
    status: &SharedStatus,
) -> Result<Measurement, DatabaseError> {
    let backlog = match kept.take() {
        Some(backlog) => backlog,
        None => BacklogMonitor::connect(config).await?,
    };
    let mut measured = backlog.measure(config, &rejection_counts_sql()).await?;
    if status.get().role == Role::Standby {
        measured.leader = backlog.find_leader(config).await?;
    }
    *kept = Some(backlog);
    Ok(measured)
}
