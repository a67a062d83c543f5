//! Measures what waits in a source's database every few seconds, whoever leads.
//!
//! A standby asks, too: so there are figures also while nobody can lead.

use std::{convert::Infallible, time::Duration};

use crate::{
    config::SourceConfig,
    ops::status::{Role, SharedStatus},
    postgres::{
        backlog::{Backlog, Measured},
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
            Ok(measured) => status.update(|status| status.measured(measured)),
            Err(err) => {
                // Whoever ships, or would like to, tells of the same database.
                let error = program::chain(&err);
                tracing::debug!(source = %config.name, error, "the backlog can't be measured");
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A session that has failed is not kept.
async fn measure(
    kept: &mut Option<Backlog>,
    config: &SourceConfig,
    status: &SharedStatus,
) -> Result<Measured, DatabaseError> {
    let backlog = match kept.take() {
        Some(backlog) => backlog,
        None => Backlog::connect(config).await?,
    };
    let mut measured = backlog.measure(config).await?;
    if status.get().role == Role::Standby {
        measured.leader = backlog.leader(config).await?;
    }
    *kept = Some(backlog);
    Ok(measured)
}
