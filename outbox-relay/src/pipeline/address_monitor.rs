//! Ends the leadership when the address of the database leads to another server. The leader's sessions stay open while the
//! former primary lives, so only a new connection tells.

use std::time::Duration;

use super::error::SourceError;
use crate::{
    config::SourceConfig,
    ops::status::{SharedStatus, Warning, WarningReason},
    postgres::{
        leader::Leadership, session::DatabaseError, verification::connect_to_leaders_database,
    },
};

/// The interval between two connections.
const INTERVAL: Duration = Duration::from_secs(15);

/// Connects to the database periodically. Returns the error if it is not the leader's. Reports other errors: the leader's own
/// sessions can work although no new one can be opened.
pub(super) async fn run_address_monitor(
    config: &SourceConfig,
    leadership: &Leadership,
    status: &SharedStatus,
) -> SourceError {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let identity = leadership.identity();
        let connecting = connect_to_leaders_database(config, identity, "outbox-relay address");
        let warning = match connecting.await {
            Ok(_) => None,
            Err(err @ DatabaseError::Moved) => return err.into(),
            Err(err) => {
                let error = cli::chain(&err);
                Some(Warning {
                    reason: WarningReason::Address,
                    message: format!("failed to verify the address of the database: {error}"),
                    hint: err.hint().to_owned(),
                })
            }
        };
        if let Some(Warning { message, hint, .. }) = &warning
            && status.get().address_warning.is_none()
        {
            tracing::warn!(source = %config.name, hint, "{message}");
        }
        status.update(|status| status.address_warning = warning);
    }
}
