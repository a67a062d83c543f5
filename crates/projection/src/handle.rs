//! The configuration, the handle and the shared state of a consumer.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use postgres_session::Pool;
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    offsets::Offsets,
    progress::{Activity, Progress},
};

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

/// The limit for the thread's end after the shutdown. Its transaction ends within [`ABANDON_AFTER_SHUTDOWN`]; leaving the
/// group can take a minute if a broker does not respond.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
/// A transaction that is still open this long after the shutdown is rolled back.
pub(crate) const ABANDON_AFTER_SHUTDOWN: Duration = Duration::from_secs(3);

/// A handle to a running consumer.
#[derive(Debug)]
pub struct ConsumerHandle {
    pub(crate) projection: String,
    pub(crate) state: watch::Receiver<ConsumerState>,
    /// Nothing is sent: the consumer's thread holds the sender.
    pub(crate) ended: oneshot::Receiver<()>,
}

impl ConsumerHandle {
    /// Returns a receiver of the consumer's state.
    pub fn state(&self) -> watch::Receiver<ConsumerState> {
        self.state.clone()
    }

    /// Waits until the consumer's thread ends, but not for a thread that hangs: the end of the process ends it.
    /// Cancel its shutdown token first.
    pub async fn join(self) {
        if tokio::time::timeout(JOIN_LIMIT, self.ended).await.is_err() {
            tracing::warn!(projection = %self.projection, limit = ?JOIN_LIMIT, "consumer did not end in time, abandoning it");
        }
    }
}

/// The state of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerState {
    /// Not connected yet.
    Starting,
    /// Applying records, or at the end of each assigned partition, which Kafka confirms every two seconds.
    Running,
    /// Not applying records for this reason. It retries.
    Failing(String),
    /// Stopped permanently for this reason. An operator has to act first.
    Stopped(String),
}

impl ConsumerState {
    /// Returns the name of the state, for example for the label of a metric.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Failing(_) => "failing",
            Self::Stopped(_) => "stopped",
        }
    }

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

/// What the consumer's threads share.
pub(crate) struct Shared {
    pub(crate) config: ConsumerConfig,
    pub(crate) pool: Pool,
    pub(crate) runtime: Handle,
    pub(crate) shutdown: CancellationToken,
    pub(crate) progress: Progress,
}

impl Shared {
    pub(crate) fn offsets(&self) -> Offsets<'_> {
        Offsets {
            projection: &self.config.name,
            topic: &self.config.topic,
        }
    }

    pub(crate) fn pause(&self, length: Duration) {
        self.progress.begin(Activity::Pausing);
        self.runtime.block_on(async {
            let _ = tokio::time::timeout(length, self.shutdown.cancelled()).await;
        });
    }
}
