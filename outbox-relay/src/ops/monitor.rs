//! Measures what waits in a source's database every few seconds, whoever leads.
//!
//! A standby asks, too: so there are figures also while nobody can lead.

use std::{convert::Infallible, time::Duration};

use crate::{
    config::SourceConfig,
    dead_letters::storage::{self, RejectionCounts},
    ops::status::{Role, SharedStatus},
    postgres::{
        backlog::{BacklogMonitor, Measurement},
        session::DatabaseError,
    },
};

/// How often it is asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// Measures for as long as it is polled.
pub(crate) async fn watch(config: SourceConfig, status: SharedStatus) -> Infallible {
    let mut backlog = None;
    loop {
        status.tick();
        match measure(&mut backlog, &config, &status).await {
            Ok((measured, dead_lettered)) => {
                status.update(|status| status.measured(measured, dead_lettered));
            }
            Err(err) => {
                // Whoever publishes, or would like to, mostly tells of the same database.
                let error = cli::chain(&err);
                tracing::debug!(source = %config.name, error, "the backlog can't be measured");
                status.update(|status| status.not_measured(error, err.hint()));
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A session that has failed is not kept.
async fn measure(
    kept: &mut Option<BacklogMonitor>,
    config: &SourceConfig,
    status: &SharedStatus,
) -> Result<(Measurement, RejectionCounts), DatabaseError> {
    let backlog = match kept.take() {
        Some(backlog) => backlog,
        None => BacklogMonitor::connect(config).await?,
    };
    let mut measured = backlog.measure(config).await?;
    let dead_lettered = storage::count(backlog.session(), &config.name).await?;
    if status.get().role == Role::Standby {
        measured.leader = backlog.find_leader(config).await?;
    }
    *kept = Some(backlog);
    Ok((measured, dead_lettered))
}
