//! What is done about dead letters while they are followed: copies go to their topic, and what they
//! hold is erased in time.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use crate::{dead_letter_topic, dead_letters, following::Shared};

/// How often it looks without being told of new ones: another replica may have died before it had
/// copied its own, and what is too old is erased so much later at most.
const INTERVAL: Duration = Duration::from_secs(30);
/// After Kafka or the database has failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Dead letters that are erased with one statement, at most.
const ERASED_TOGETHER: usize = 100;

/// Looks after them until `shutdown`. `news` tells of new ones.
pub(crate) async fn look_after(shared: Arc<Shared>, news: Arc<Notify>) {
    let projection = &shared.options.name;
    loop {
        let mut pause = INTERVAL;
        // Before they are copied: what is too old must not go on to a topic.
        if let Err(reason) = erase_expired(&shared).await {
            tracing::warn!(%projection, %reason, "what old dead letters hold is not erased yet");
            pause = RETRY_INTERVAL;
        }
        if let Some(topic) = &shared.options.dead_letter_topic
            && let Err(reason) = dead_letter_topic::copy_pending(&shared, topic).await
        {
            tracing::warn!(%projection, %topic, %reason, "dead letters are not in their topic yet");
            pause = RETRY_INTERVAL;
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = news.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn erase_expired(shared: &Shared) -> Result<(), String> {
    let retention = shared.options.dead_letter_retention;
    while !shared.shutdown.is_cancelled() {
        let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
        let erasing = dead_letters::erase_older_than(&mut conn, retention, ERASED_TOGETHER);
        if erasing.await.map_err(|err| err.to_string())? < ERASED_TOGETHER {
            break;
        }
    }
    Ok(())
}
