//! The consumer: a thread of its own that polls Kafka and applies what comes.
//!
//! A thread and not a task, because librdkafka calls back while it is polled, and the callback that
//! assigns partitions has to ask the database where they begin.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use diesel_async::{AsyncPgConnection, pooled_connection::deadpool::Pool};
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
    types::RDKafkaRespErr,
};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Projection,
    apply::{self, Outcome},
    offsets::{Moves, Offsets},
};

/// Records of a batch at most. More per transaction is faster in a rebuild and keeps the offset's
/// row locked for longer.
const MAX_BATCH_RECORDS: usize = 1_000;
/// How long a poll waits for a record; it bounds how late a shutdown is noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// How often a topic without records is asked whether it is still there.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause before another try; it doubles up to the second.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What to follow, and as whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// The brokers to begin with, `host:port`, separated by commas.
    pub brokers: String,
    /// Names the projection in its offsets, its dead letters, and as a consumer group.
    pub name: String,
    /// The topic.
    pub topic: String,
    /// Names this replica, so that a restart gets its partitions back at once. Without it, the
    /// group waits for the session of the one that died to run out.
    pub instance_id: Option<String>,
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

/// A projection that is being followed.
#[derive(Debug)]
pub struct Following {
    state: watch::Receiver<State>,
    thread: thread::JoinHandle<()>,
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

/// Follows a topic until `shutdown`.
pub fn follow<P: Projection>(
    options: Options,
    projection: Arc<P>,
    pool: Pool<AsyncPgConnection>,
    shutdown: CancellationToken,
) -> Following {
    let (state_now, state) = watch::channel(State::Starting);
    let runtime = Handle::current();
    let follower = Follower {
        shared: Arc::new(Shared {
            options,
            pool,
            runtime,
            shutdown,
            state: state_now,
        }),
        projection,
    };
    let thread = thread::spawn(move || follower.run());
    Following { state, thread }
}

struct Follower<P> {
    shared: Arc<Shared>,
    projection: Arc<P>,
}

/// What the thread and librdkafka's callbacks both need.
struct Shared {
    options: Options,
    pool: Pool<AsyncPgConnection>,
    runtime: Handle,
    shutdown: CancellationToken,
    state: watch::Sender<State>,
}

/// Why a consumer has to be made anew, or none.
enum End {
    /// Asked to end.
    Shutdown,
    /// Somebody else moved our offsets: begin from theirs.
    Overtaken,
    /// See [`State::Stopped`].
    Stopped(String),
}

impl<P: Projection> Follower<P> {
    fn run(self) {
        let name = &self.shared.options.name;
        loop {
            match self.consume() {
                Ok(End::Shutdown) => return,
                Ok(End::Overtaken) => {
                    tracing::info!(projection = %name, "overtaken by another consumer, going on from its offset");
                }
                Ok(End::Stopped(reason)) => {
                    tracing::error!(projection = %name, %reason, "stopped");
                    self.shared.state.send_replace(State::Stopped(reason));
                    return;
                }
                Err(err) => {
                    self.shared.fail(&format!("Kafka: {err}"));
                    self.shared.pause(MAX_BACKOFF);
                }
            }
        }
    }

    fn consume(&self) -> Result<End, KafkaError> {
        let consumer = self.shared.consumer()?;
        let mut last_contact = None;
        loop {
            if self.shared.shutdown.is_cancelled() {
                return Ok(End::Shutdown);
            }
            let (batch, error) = next_batch(&consumer);
            if !batch.is_empty() {
                match self.apply_until_done(&consumer, &batch) {
                    Some(Outcome::Applied) => {}
                    Some(Outcome::Overtaken) => return Ok(End::Overtaken),
                    None => return Ok(End::Shutdown),
                }
                self.shared.succeed();
                last_contact = Some(Instant::now());
            } else if error.is_none()
                && (self.shared.is_starting()
                    || last_contact.is_none_or(|at: Instant| at.elapsed() > HEALTH_INTERVAL))
            {
                self.shared.look_around(&consumer);
                last_contact = Some(Instant::now());
            }
            match error {
                None => {}
                Some(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                    return Ok(End::Stopped(format!(
                        "topic {} no longer has the stored offset; was it deleted and made anew?",
                        self.shared.options.topic
                    )));
                }
                // librdkafka mends these by itself, and tells of them one after the other.
                Some(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::Resolve,
                )) => self.shared.fail("no connection to Kafka"),
                Some(KafkaError::MessageConsumptionFatal(code)) => {
                    return Err(KafkaError::MessageConsumptionFatal(code));
                }
                Some(err) => {
                    self.shared.fail(&format!("Kafka: {err}"));
                    self.shared.pause(MIN_BACKOFF);
                }
            }
            if consumer.context().has_failed.load(Ordering::Acquire) {
                return Err(KafkaError::Rebalance(RDKafkaErrorCode::AssignmentLost));
            }
        }
    }

    /// Applies a batch, trying again for as long as the database keeps it from doing so; none if it
    /// is asked to end meanwhile.
    fn apply_until_done(
        &self,
        consumer: &BaseConsumer<Assignment>,
        batch: &[BorrowedMessage<'_>],
    ) -> Option<Outcome> {
        let shared = &self.shared;
        let from = consumer.context().positions();
        let mut backoff = MIN_BACKOFF;
        while !shared.shutdown.is_cancelled() {
            let applied = shared.runtime.block_on(async {
                let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
                apply::apply(
                    &*self.projection,
                    &shared.offsets(),
                    &mut conn,
                    &from,
                    batch,
                )
                .await
                .map_err(|err| err.to_string())
            });
            match applied {
                Ok(outcome) => {
                    if outcome == Outcome::Applied {
                        consumer.context().moved(&apply::moves(&from, batch));
                        tell_kafka(consumer, batch);
                    }
                    return Some(outcome);
                }
                Err(reason) => {
                    shared.fail(&format!("can't apply records: {reason}"));
                    shared.pause(backoff);
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
        None
    }
}

/// What is there, up to the bound, and the error that came behind it, if one did. Waits a little for
/// the first record only.
fn next_batch(
    consumer: &BaseConsumer<Assignment>,
) -> (Vec<BorrowedMessage<'_>>, Option<KafkaError>) {
    let mut batch = Vec::new();
    let mut error = None;
    let mut timeout = POLL_TIMEOUT;
    while batch.len() < MAX_BATCH_RECORDS {
        match consumer.poll(timeout) {
            Some(Ok(message)) => batch.push(message),
            Some(Err(err)) => {
                error = Some(err);
                break;
            }
            None => break,
        }
        timeout = Duration::ZERO;
    }
    // A rebalance in one of these polls can have taken partitions away, or given them anew.
    let positions = consumer.context().positions();
    batch.retain(|message| {
        positions
            .get(&message.partition())
            .is_some_and(|(next, _)| message.offset() >= *next)
    });
    (batch, error)
}

/// Stores the offsets with the group, for tools that show lag. Nothing depends on them.
fn tell_kafka(consumer: &BaseConsumer<Assignment>, batch: &[BorrowedMessage<'_>]) {
    for message in batch {
        if let Err(error) = consumer.store_offset_from_message(message) {
            tracing::debug!(%error, "offset not stored with the group");
            return;
        }
    }
}

impl Shared {
    fn offsets(&self) -> Offsets<'_> {
        Offsets {
            projection: &self.options.name,
            topic: &self.options.topic,
        }
    }

    fn consumer(self: &Arc<Self>) -> Result<BaseConsumer<Assignment>, KafkaError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.options.brokers)
            .set("group.id", &self.options.name)
            .set("client.id", &self.options.name)
            .set("partition.assignment.strategy", "cooperative-sticky")
            // Offsets come from the database; an offset that the topic does not have is an error.
            .set("auto.offset.reset", "error")
            .set("enable.auto.offset.store", "false")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("session.timeout.ms", "10000")
            .set("reconnect.backoff.max.ms", "1000")
            .set("fetch.error.backoff.ms", "100")
            // Bounds what waits in memory to be applied.
            .set("queued.max.messages.kbytes", "16384");
        if let Some(instance_id) = &self.options.instance_id {
            config.set("group.instance.id", instance_id);
        }
        let context = Assignment {
            shared: Arc::clone(self),
            positions: Mutex::default(),
            has_joined: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        };
        let consumer: BaseConsumer<Assignment> = config.create_with_context(context)?;
        consumer.subscribe(&[&self.options.topic])?;
        Ok(consumer)
    }

    /// Finds out, where no record comes that would tell, whether one could.
    fn look_around(&self, consumer: &BaseConsumer<Assignment>) {
        let topic = &self.options.topic;
        match consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT) {
            Ok(metadata) if metadata.topics().iter().all(|t| t.partitions().is_empty()) => {
                self.fail(&format!("Kafka has no topic {topic}"));
            }
            Ok(_) if consumer.context().has_joined.load(Ordering::Acquire) => self.succeed(),
            Ok(_) if self.is_starting() => {}
            Ok(_) => self.fail("waiting for the consumer group to give out its partitions"),
            Err(_) => self.fail("no connection to Kafka"),
        }
    }

    fn is_starting(&self) -> bool {
        *self.state.borrow() == State::Starting
    }

    fn succeed(&self) {
        self.tell(State::Following);
    }

    fn fail(&self, reason: &str) {
        self.tell(State::Failing(reason.to_owned()));
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
                _ => tracing::info!(%projection, "following"),
            }
            *now = state;
            true
        });
    }

    fn pause(&self, length: Duration) {
        self.runtime.block_on(async {
            let _ = tokio::time::timeout(length, self.shutdown.cancelled()).await;
        });
    }
}

/// Assigns partitions from the offsets in the database, while the consumer is polled.
struct Assignment {
    shared: Arc<Shared>,
    /// The next offset of each partition that is ours.
    positions: Mutex<Moves>,
    /// Whether the group has given us our part, be it nothing: before that, records are not heard.
    has_joined: AtomicBool,
    /// Whether partitions could not be taken, which only a new consumer can mend.
    has_failed: AtomicBool,
}

impl Assignment {
    fn positions(&self) -> Moves {
        self.positions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn moved(&self, moves: &Moves) {
        let mut positions = self
            .positions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        positions.extend(
            moves
                .iter()
                .map(|(partition, (_, to))| (*partition, (*to, *to))),
        );
    }

    /// Waits for Kafka and the database as long as it takes; none if it is asked to end.
    fn next_offset(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Option<i64> {
        let shared = &self.shared;
        let mut backoff = MIN_BACKOFF;
        while !shared.shutdown.is_cancelled() {
            let topic = &shared.options.topic;
            let loaded = consumer
                .fetch_watermarks(topic, partition, METADATA_TIMEOUT)
                .map_err(|err| format!("Kafka does not answer: {err}"))
                .and_then(|(earliest, _)| {
                    shared.runtime.block_on(async {
                        let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
                        let offsets = shared.offsets();
                        let loading = offsets.load(&mut conn, partition, earliest);
                        loading.await.map_err(|err| err.to_string())
                    })
                });
            match loaded {
                Ok(next) => return Some(next),
                Err(reason) => shared.fail(&format!("can't load offsets: {reason}")),
            }
            shared.pause(backoff);
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
        None
    }

    fn assign(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &mut TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let numbers: Vec<i32> = partitions
            .elements()
            .iter()
            .map(|e| e.partition())
            .collect();
        for partition in numbers {
            let Some(next) = self.next_offset(consumer, partition) else {
                return Ok(());
            };
            let topic = &self.shared.options.topic;
            partitions.set_partition_offset(topic, partition, Offset::Offset(next))?;
            self.moved(&Moves::from([(partition, (next, next))]));
        }
        consumer.incremental_assign(partitions)?;
        self.has_joined.store(true, Ordering::Release);
        Ok(())
    }

    fn unassign(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let mut positions = self
            .positions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for element in partitions.elements() {
            positions.remove(&element.partition());
        }
        if positions.is_empty() {
            self.has_joined.store(false, Ordering::Release);
        }
        drop(positions);
        consumer.incremental_unassign(partitions)
    }
}

impl ClientContext for Assignment {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Assignment {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let projection = &self.shared.options.name;
        let count = partitions.count();
        let (what, result) = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                ("assigned", self.assign(consumer, partitions))
            }
            _ => ("revoked", self.unassign(consumer, partitions)),
        };
        match result {
            Ok(()) => tracing::info!(%projection, partitions = count, "{what}"),
            Err(error) => {
                tracing::warn!(%projection, %error, "rebalance failed");
                self.has_failed.store(true, Ordering::Release);
            }
        }
    }
}
