//! What is followed, and how that goes.

use std::{thread, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use diesel_async::{AsyncPgConnection, pooled_connection::deadpool::Pool};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::offsets::Offsets;

/// The pause before another try: from the first up to the second.
pub(crate) const MIN_BACKOFF: Duration = Duration::from_millis(100);
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Doubles from try to try. Jitter, which makes a pause up to twice as long, keeps replicas that lost the same server from
/// coming back in step.
pub(crate) fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(MIN_BACKOFF)
        .with_max_delay(MAX_BACKOFF / 2)
        .with_jitter()
        .without_max_times()
        .build()
}

/// What to follow, and as whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// The brokers to begin with, `host:port`, separated by commas.
    pub brokers: String,
    /// Names the projection in its offsets, its dead letters, and as a consumer group.
    pub name: String,
    /// The topic.
    pub topic: String,
    /// Where copies of dead letters go, besides the table; nowhere else if none. It has to exist.
    pub dead_letter_topic: Option<String>,
    /// For how long it is kept what dead letters hold; then it is erased, and the rows stay. It is
    /// the same for all projections of a database.
    pub dead_letter_retention: Duration,
    /// Names this replica, so that a restart gets its partitions back at once. Without it, the
    /// group waits for the session of the one that died to run out.
    pub instance_id: Option<String>,
}

/// A projection that is being followed.
#[derive(Debug)]
pub struct Following {
    pub(crate) state: watch::Receiver<State>,
    pub(crate) thread: thread::JoinHandle<()>,
}

impl Following {
    /// Whether it follows.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits for its end, which its shutdown token brings about.
    pub async fn ended(self) {
        let _ = tokio::task::spawn_blocking(|| self.thread.join()).await;
    }
}

/// Whether a projection follows its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not connected yet.
    Starting,
    /// It applies what comes.
    Following,
    /// Something keeps it from going on; it tries again.
    Failing(String),
    /// Something must be mended by a person first.
    Stopped(String),
}

impl State {
    /// # Errors
    /// What keeps the projection from following.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Following => Ok(()),
            Self::Starting => Err("not connected to Kafka yet".to_owned()),
            Self::Failing(reason) | Self::Stopped(reason) => Err(reason.clone()),
        }
    }
}

/// What the thread and librdkafka's callbacks both need.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) pool: Pool<AsyncPgConnection>,
    pub(crate) runtime: Handle,
    pub(crate) shutdown: CancellationToken,
    pub(crate) state: watch::Sender<State>,
}

impl Shared {
    pub(crate) fn offsets(&self) -> Offsets<'_> {
        Offsets {
            projection: &self.options.name,
            topic: &self.options.topic,
        }
    }

    pub(crate) fn is_starting(&self) -> bool {
        *self.state.borrow() == State::Starting
    }

    pub(crate) fn succeed(&self) {
        self.tell(State::Following);
    }

    pub(crate) fn fail(&self, reason: &str) {
        self.tell(State::Failing(reason.to_owned()));
    }

    pub(crate) fn stop(&self, reason: String) {
        self.tell(State::Stopped(reason));
    }

    /// Logs a state once, when it begins.
    fn tell(&self, state: State) {
        self.state.send_if_modified(|now| {
            if *now == state {
                return false;
            }
            let projection = &self.options.name;
            match &state {
                State::Failing(reason) => tracing::warn!(%projection, %reason, "not following"),
                State::Stopped(reason) => tracing::error!(%projection, %reason, "stopped"),
                _ => tracing::info!(%projection, "following"),
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
