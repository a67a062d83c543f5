//! Ends the leadership when the address of the database leads to another server. The leader's sessions stay open while the
//! former primary lives, so only a new connection tells.

use std::time::Duration;

use super::error::SourceError;
use crate::{
    config::SourceConfig,
    postgres::{
        leader::Leadership, session::DatabaseError, verification::connect_to_leaders_database,
    },
};

/// The interval between two connections.
const INTERVAL: Duration = Duration::from_secs(15);

/// Connects to the database periodically. Returns the error if it is not the leader's.
pub(super) async fn run_address_monitor(
    config: &SourceConfig,
    leadership: &Leadership,
) -> SourceError {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let identity = leadership.identity();
        let connecting = connect_to_leaders_database(config, identity, "outbox-relay address");
        match connecting.await {
            Ok(_) => {}
            Err(err @ DatabaseError::Moved) => return err.into(),
            // The leader's own sessions report an unavailable database.
            Err(err) => {
                let error = cli::chain(&err);
                tracing::debug!(source = %config.name, error, "failed to verify the address of the database");
            }
        }
    }
}
