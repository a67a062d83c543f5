//! Polling with a generous timeout, for tests.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// The timeout of every wait in tests; much longer than anything takes on a slow machine.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause between two polls.
const PAUSE: Duration = Duration::from_millis(20);

/// Calls `poll` repeatedly until it returns a value. `what` describes the awaited condition in the error.
///
/// # Errors
/// The first error of `poll`, or a timeout after [`WAIT_TIMEOUT`].
pub async fn eventually<T>(
    what: &str,
    mut poll: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let polling = async {
        loop {
            match poll().await? {
                Some(value) => return Ok(value),
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    };
    let result = tokio::time::timeout(WAIT_TIMEOUT, polling).await;
    result.with_context(|| format!("timed out after {WAIT_TIMEOUT:?} waiting for: {what}"))?
}
