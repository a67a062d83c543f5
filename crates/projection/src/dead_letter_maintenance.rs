//! The background task that copies dead letters to their topic, and erases their contents after the
//! retention.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use crate::{
    ClockGuard,
    dead_letter_topic::{Copying, copy_pending},
    dead_letters,
    handle::Shared,
};

/// The pause without a notification. Another replica may have died before it copied its dead letters,
/// and the erasure of an expired one is late by this at most.
const INTERVAL: Duration = Duration::from_secs(30);
/// The pause after an error of Kafka or the database, or if another replica is copying.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum dead letters that one statement erases.
const ERASE_BATCH: usize = 100;

/// Copies and erases dead letters until `shutdown`. `added` is notified of new ones.
pub(crate) async fn maintain(shared: Arc<Shared>, added: Arc<Notify>) {
    let projection = &shared.config.name;
    let mut clock = ClockGuard::new("dead letters", shared.config.dead_letter_retention);
    loop {
        let mut pause = INTERVAL;
        // Before the copying: expired contents must not reach the topic.
        if let Err(reason) = erase_expired(&shared, &mut clock).await {
            tracing::warn!(%projection, %reason, "failed to erase expired dead letters, retrying");
            pause = RETRY_INTERVAL;
        }
        if let Some(topic) = &shared.config.dead_letter_topic {
            match copy_pending(&shared, topic).await {
                Ok(Copying::Complete) => {}
                Ok(Copying::ByAnotherReplica) => pause = RETRY_INTERVAL,
                Err(reason) => {
                    tracing::warn!(%projection, %topic, %reason, "failed to copy dead letters to their topic, retrying");
                    pause = RETRY_INTERVAL;
                }
            }
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = added.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn erase_expired(shared: &Shared, clock: &mut ClockGuard) -> Result<(), String> {
    while !shared.shutdown.is_cancelled() {
        let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
        let cutoff = clock.read_cutoff(&mut conn).await;
        let Some(cutoff) = cutoff.map_err(|err| err.to_string())? else {
            break;
        };
        let erasing = dead_letters::erase_older_than(&mut conn, cutoff, ERASE_BATCH);
        if erasing.await.map_err(|err| err.to_string())? < ERASE_BATCH {
            break;
        }
    }
    Ok(())
}
