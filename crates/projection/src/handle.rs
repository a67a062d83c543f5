//! The configuration, the handle and the shared state of a consumer.

use std::{thread, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use postgres_session::Pool;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::offsets::Offsets;

/// The bounds of the pause before a retry.
pub(crate) const MIN_BACKOFF: Duration = Duration::from_millis(100);
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Exponential backoff. Jitter, which makes a pause up to twice as long, keeps replicas that lost the same server from
/// reconnecting at the same time.
pub(crate) fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(MIN_BACKOFF)
        .with_max_delay(MAX_BACKOFF / 2)
        .with_jitter()
        .without_max_times()
        .build()
}

/// The configuration of a projection's consumer.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// The bootstrap brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The name of the projection in `projection_offsets` and `dead_letters`, and of its consumer group.
    pub name: String,
    /// The topic to consume.
    pub topic: String,
    /// The topic that receives copies of dead letters. It must exist. `None`: no copies.
    pub dead_letter_topic: Option<String>,
    /// The retention of the contents of dead letters. They are then erased, and the rows stay.
    /// Use one value for all projections of a database.
    pub dead_letter_retention: Duration,
    /// The `group.instance.id` of this replica: after a restart it gets its partitions back at once.
    /// A replica that is shut down keeps them until its session times out.
    pub instance_id: Option<String>,
    /// The time without a heartbeat after which the group assigns the partitions of a replica to others.
    pub session_timeout: Duration,
}

/// A handle to a running consumer.
#[derive(Debug)]
pub struct ConsumerHandle {
    pub(crate) state: watch::Receiver<ConsumerState>,
    pub(crate) thread: thread::JoinHandle<()>,
}

impl ConsumerHandle {
    /// Returns a receiver of the consumer's state.
    pub fn state(&self) -> watch::Receiver<ConsumerState> {
        self.state.clone()
    }

    /// Waits until the consumer's thread ends. Cancel its shutdown token first.
    pub async fn join(self) {
        let _ = tokio::task::spawn_blocking(|| self.thread.join()).await;
    }
}

/// The state of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerState {
    /// Not connected yet.
    Starting,
    /// Consuming and applying records.
    Running,
    /// Not consuming because of this error. It retries.
    Failing(String),
    /// Stopped permanently for this reason. An operator has to act first.
    Stopped(String),
}

impl ConsumerState {
    /// Checks that the consumer is running.
    ///
    /// # Errors
    /// The reason why it is not.
    pub fn ensure_running(&self) -> Result<(), String> {
        match self {
            Self::Running => Ok(()),
            Self::Starting => Err("not connected to Kafka yet".to_owned()),
            Self::Failing(reason) | Self::Stopped(reason) => Err(reason.clone()),
        }
    }
}

/// State that the consumer's thread shares with librdkafka's callbacks.
pub(crate) struct Shared {
    pub(crate) config: ConsumerConfig,
    pub(crate) pool: Pool,
    pub(crate) runtime: Handle,
    pub(crate) shutdown: CancellationToken,
    pub(crate) state: watch::Sender<ConsumerState>,
}

impl Shared {
    pub(crate) fn offsets(&self) -> Offsets<'_> {
        Offsets {
            projection: &self.config.name,
            topic: &self.config.topic,
        }
    }

    pub(crate) fn is_starting(&self) -> bool {
        *self.state.borrow() == ConsumerState::Starting
    }

    pub(crate) fn set_running(&self) {
        self.set_state(ConsumerState::Running);
    }

    pub(crate) fn set_failing(&self, reason: &str) {
        self.set_state(ConsumerState::Failing(reason.to_owned()));
    }

    pub(crate) fn set_stopped(&self, reason: String) {
        self.set_state(ConsumerState::Stopped(reason));
    }

    /// Sets the state, and logs it if it changed.
    fn set_state(&self, state: ConsumerState) {
        self.state.send_if_modified(|now| {
            if *now == state {
                return false;
            }
            let projection = &self.config.name;
            match &state {
                ConsumerState::Failing(reason) => {
                    tracing::warn!(%projection, %reason, "consumer failing, retrying")
                }
                ConsumerState::Stopped(reason) => {
                    tracing::error!(%projection, %reason, "consumer stopped")
                }
                _ => tracing::info!(%projection, "consumer running"),
            }
            *now = state;
            true
        });
    }

    pub(crate) fn pause(&self, length: Duration) {
        self.runtime.block_on(async {
            let _ = tokio::time::timeout(length, self.shutdown.cancelled()).await;
        });
    }
}
