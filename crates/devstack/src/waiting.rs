//! Waiting in tests: for what is sure to come, and only a broken system fails to bring.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long anything may take in a test; far longer than it does on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks again and again, until there is an answer.
///
/// # Errors
/// The first that asking ends with, or that there was no answer within [`PATIENCE`].
pub async fn eventually<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let asking = async {
        loop {
            match ask().await? {
                Some(answer) => return Ok(answer),
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await;
    answer.with_context(|| format!("never: {what}"))?
}
