//! Looks after the topic while records are waited for.
//!
//! On a thread and connections of its own: a broker answers the requests of a connection one after
//! the other, so that a question behind a fetch that waits for records takes as long as that one, and
//! a record that comes meanwhile is late.

use std::{sync::Arc, thread, time::Duration};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{assignment::Assignment, following::Shared};

/// How often it looks; until the group has given out its partitions, more often.
const INTERVAL: Duration = Duration::from_secs(2);
const STARTING_INTERVAL: Duration = Duration::from_millis(100);
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// What there was to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The topic is there, and has every offset up to the next one.
    Fine,
    NoConnection,
    NoTopic,
    /// A partition ends before the offset that is next.
    Recreated {
        next: i64,
        end: i64,
    },
}

/// A thread that looks, until this is dropped.
pub(crate) struct TopicMonitor {
    latest: Arc<Mutex<Option<Look>>>,
    _ends_with_this: DropGuard,
}

impl TopicMonitor {
    pub(crate) fn start(
        shared: &Arc<Shared>,
        assignment: &Arc<Assignment>,
    ) -> Result<Self, KafkaError> {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &shared.options.brokers)
            .set(
                "client.id",
                format!("{} topic_monitor", shared.options.name),
            )
            .set("reconnect.backoff.max.ms", "1000")
            .create()?;
        let latest = Arc::new(Mutex::new(None));
        let ended = shared.shutdown.child_token();
        let (shared, assignment) = (Arc::clone(shared), Arc::clone(assignment));
        let (found, end) = (Arc::clone(&latest), ended.clone());
        thread::spawn(move || keep_looking(&client, &shared, &assignment, &found, &end));
        Ok(Self {
            latest,
            _ends_with_this: ended.drop_guard(),
        })
    }

    /// What was seen since the last time that this was asked.
    pub(crate) fn news(&self) -> Option<Look> {
        self.latest.lock().take()
    }
}

fn keep_looking(
    client: &BaseConsumer,
    shared: &Shared,
    assignment: &Assignment,
    latest: &Mutex<Option<Look>>,
    ended: &CancellationToken,
) {
    while !ended.is_cancelled() {
        let look = look(client, &shared.options.topic, assignment);
        *latest.lock() = Some(look);
        let is_settled = look == Look::Fine && assignment.has_joined();
        let interval = if is_settled {
            INTERVAL
        } else {
            STARTING_INTERVAL
        };
        shared.runtime.block_on(async {
            let _ = tokio::time::timeout(interval, ended.cancelled()).await;
        });
    }
}

fn look(client: &BaseConsumer, topic: &str, assignment: &Assignment) -> Look {
    match client.fetch_metadata(Some(topic), METADATA_TIMEOUT) {
        Err(_) => Look::NoConnection,
        Ok(metadata) if metadata.topics().iter().all(|t| t.partitions().is_empty()) => {
            Look::NoTopic
        }
        Ok(_) => match assignment.ahead(client) {
            Err(_) => Look::NoConnection,
            Ok(None) => Look::Fine,
            Ok(Some((next, end))) => Look::Recreated { next, end },
        },
    }
}
