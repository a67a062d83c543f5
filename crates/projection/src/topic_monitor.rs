//! Monitors the topic while the consumer waits for records.
//!
//! It uses a thread and connections of its own. A broker answers the requests of a connection in order, so a
//! metadata request behind a fetch would wait as long as the fetch, and delay the next fetch.

use std::{sync::Arc, thread, time::Duration};

use parking_lot::Mutex;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{assignment::Assignment, handle::Shared};

/// The pause between two checks. Shorter until the group has assigned partitions.
const INTERVAL: Duration = Duration::from_secs(2);
const STARTING_INTERVAL: Duration = Duration::from_millis(100);
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of the topic at the last check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopicState {
    /// The topic exists, and no partition ends before its next offset.
    Ok,
    Unreachable,
    Missing,
    /// A partition ends before the next offset.
    Recreated {
        next: i64,
        end: i64,
    },
}

/// A handle to the monitor's thread, which ends when this is dropped.
pub(crate) struct TopicMonitor {
    latest: Arc<Mutex<Option<TopicState>>>,
    _stop_on_drop: DropGuard,
}

impl TopicMonitor {
    pub(crate) fn start(
        shared: &Arc<Shared>,
        assignment: &Arc<Assignment>,
    ) -> Result<Self, KafkaError> {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &shared.config.brokers)
            .set("client.id", format!("{} topic-monitor", shared.config.name))
            .set("reconnect.backoff.max.ms", "1000")
            .create()?;
        let latest = Arc::new(Mutex::new(None));
        let stop = shared.shutdown.child_token();
        let (shared, assignment) = (Arc::clone(shared), Arc::clone(assignment));
        let (state, stopped) = (Arc::clone(&latest), stop.clone());
        thread::spawn(move || monitor_topic(&client, &shared, &assignment, &state, &stopped));
        Ok(Self {
            latest,
            _stop_on_drop: stop.drop_guard(),
        })
    }

    /// Takes the result of the latest check, if there was one since the last call.
    pub(crate) fn take_latest(&self) -> Option<TopicState> {
        self.latest.lock().take()
    }
}

fn monitor_topic(
    client: &BaseConsumer,
    shared: &Shared,
    assignment: &Assignment,
    latest: &Mutex<Option<TopicState>>,
    stopped: &CancellationToken,
) {
    while !stopped.is_cancelled() {
        let state = check_topic(client, &shared.config.topic, assignment);
        *latest.lock() = Some(state);
        let is_settled = state == TopicState::Ok && assignment.has_joined();
        let interval = if is_settled {
            INTERVAL
        } else {
            STARTING_INTERVAL
        };
        shared.runtime.block_on(async {
            let _ = tokio::time::timeout(interval, stopped.cancelled()).await;
        });
    }
}

fn check_topic(client: &BaseConsumer, topic: &str, assignment: &Assignment) -> TopicState {
    match client.fetch_metadata(Some(topic), METADATA_TIMEOUT) {
        Err(_) => TopicState::Unreachable,
        Ok(metadata) if metadata.topics().iter().all(|t| t.partitions().is_empty()) => {
            TopicState::Missing
        }
        Ok(_) => match assignment.find_recreated(client) {
            Err(_) => TopicState::Unreachable,
            Ok(None) => TopicState::Ok,
            Ok(Some((next, end))) => TopicState::Recreated { next, end },
        },
    }
}
