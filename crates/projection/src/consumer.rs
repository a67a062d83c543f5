//! The consumer: a thread that polls Kafka and applies records.
//!
//! It is a thread and not a task because librdkafka calls back while it is polled, and the callback
//! that assigns partitions has to load their offsets from the database.

use std::{sync::Arc, thread, time::Duration};

use postgres_session::Pool;
use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Projection,
    apply::{self, Outcome},
    assignment::Assignment,
    dead_letter_maintenance,
    decoded::DecodedBatch,
    handle::{
        ConsumerConfig, ConsumerHandle, ConsumerState, MAX_BACKOFF, MIN_BACKOFF, Shared, backoff,
    },
    rebuild::rebuild_name,
    session,
    topic_monitor::{TopicMonitor, TopicState},
};

/// Maximum records of a batch. A larger batch is faster in a rebuild, and locks the offset's row for
/// longer.
const MAX_BATCH_RECORDS: usize = 1_000;
/// Payload bytes that end a batch; the last record may exceed it.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// The timeout of a poll; it bounds how late a shutdown is noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// Spawns a consumer that applies a topic to a projection until `shutdown`.
pub fn spawn_consumer<P: Projection>(
    config: ConsumerConfig,
    projection: Arc<P>,
    pool: Pool,
    shutdown: CancellationToken,
) -> ConsumerHandle {
    let (state_sender, state) = watch::channel(ConsumerState::Starting);
    let runtime = Handle::current();
    let shared = Arc::new(Shared {
        config,
        pool,
        runtime,
        shutdown,
        state: state_sender,
    });
    let dead_letters = Arc::new(Notify::new());
    let maintenance = dead_letter_maintenance::maintain(Arc::clone(&shared), dead_letters.clone());
    tokio::spawn(maintenance);
    let worker = ConsumerWorker {
        shared,
        projection,
        dead_letters,
    };
    let thread = thread::spawn(move || {
        let _guard = PanicGuard(Arc::clone(&worker.shared));
        worker.run();
    });
    ConsumerHandle { state, thread }
}

/// Sets the state to stopped if the thread panics, which would otherwise go unnoticed.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason = "consumer panicked, which is a bug. Look up the panic in the log, and restart the service.";
            self.0.set_stopped(reason.to_owned());
        }
    }
}

struct ConsumerWorker<P> {
    shared: Arc<Shared>,
    projection: Arc<P>,
    /// Notified when records were dead-lettered.
    dead_letters: Arc<Notify>,
}

/// The reason why a consumer ends.
enum ExitReason {
    /// The shutdown token was cancelled.
    Shutdown,
    /// Another consumer has advanced the offsets. Restart from the stored ones.
    OffsetConflict,
    /// See [`ConsumerState::Stopped`].
    Stopped(String),
}

impl<P: Projection> ConsumerWorker<P> {
    fn run(self) {
        let name = &self.shared.config.name;
        while !self.shared.shutdown.is_cancelled() {
            match self.consume() {
                Ok(ExitReason::Shutdown) => return,
                Ok(ExitReason::OffsetConflict) => {
                    tracing::info!(projection = %name, "another consumer advanced the offsets, restarting from the stored offsets");
                }
                Ok(ExitReason::Stopped(reason)) => {
                    self.shared.set_stopped(reason);
                    return;
                }
                Err(err) => {
                    self.shared.set_failing(&format!("Kafka: {err}"));
                    self.shared.pause(MAX_BACKOFF);
                }
            }
        }
    }

    fn consume(&self) -> Result<ExitReason, KafkaError> {
        let consumer = Assignment::create_consumer(&self.shared)?;
        let topic_monitor = TopicMonitor::start(&self.shared, consumer.context())?;
        loop {
            if self.shared.shutdown.is_cancelled() {
                return Ok(ExitReason::Shutdown);
            }
            let (batch, interruption) = poll_batch(&consumer);
            if !batch.is_empty() {
                match self.apply_with_retry(&consumer, &batch) {
                    Some(Outcome::Applied { dead_lettered: 0 }) => {}
                    Some(Outcome::Applied { .. }) => self.dead_letters.notify_one(),
                    Some(Outcome::OffsetConflict) => return Ok(ExitReason::OffsetConflict),
                    None => return Ok(ExitReason::Shutdown),
                }
                self.shared.set_running();
            }
            let error = match interruption {
                None => None,
                Some(Interruption::Error(err)) => Some(err),
                Some(Interruption::OffsetRegressed(offset)) => {
                    let evidence = format!("a record has the earlier offset {offset}");
                    return Ok(self.stop_at_recreated_topic(&evidence));
                }
            };
            if error.is_none()
                && let Some(state) = topic_monitor.take_latest()
                && let Some(exit) = self.handle_topic_state(state, consumer.context())
            {
                return Ok(exit);
            }
            match error {
                None => {}
                Some(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                    return Ok(self.stop_at_recreated_topic("the stored offset is out of range"));
                }
                Some(KafkaError::MessageConsumption(RDKafkaErrorCode::InvalidSessionTimeout)) => {
                    let reason = session::describe_rejection(&self.shared.config);
                    return Ok(ExitReason::Stopped(reason));
                }
                // librdkafka recovers from these, and reports each of them in turn.
                Some(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::Resolve,
                )) => self.shared.set_failing("no connection to Kafka"),
                Some(KafkaError::MessageConsumptionFatal(code)) => {
                    return Err(KafkaError::MessageConsumptionFatal(code));
                }
                Some(err) => {
                    self.shared.set_failing(&format!("Kafka: {err}"));
                    self.shared.pause(MIN_BACKOFF);
                }
            }
            if consumer.context().has_failed() {
                return Err(KafkaError::Rebalance(RDKafkaErrorCode::AssignmentLost));
            }
        }
    }

    /// Acts on what the topic monitor has found.
    fn handle_topic_state(&self, state: TopicState, assignment: &Assignment) -> Option<ExitReason> {
        let topic = &self.shared.config.topic;
        match state {
            TopicState::Missing => self
                .shared
                .set_failing(&format!("topic {topic} does not exist")),
            TopicState::Unreachable => self.shared.set_failing("no connection to Kafka"),
            TopicState::Recreated { next, end } => {
                let evidence =
                    format!("a partition ends at offset {end}, before the next offset {next}");
                return Some(self.stop_at_recreated_topic(&evidence));
            }
            TopicState::Ok if assignment.has_joined() => self.shared.set_running(),
            TopicState::Ok if self.shared.is_starting() => {}
            TopicState::Ok => self
                .shared
                .set_failing("waiting for the consumer group to assign partitions"),
        }
        None
    }

    /// Stops: an operator has to decide, because the new topic may hold other records.
    fn stop_at_recreated_topic(&self, evidence: &str) -> ExitReason {
        let ConsumerConfig { topic, name, .. } = &self.shared.config;
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let (quoted_name, quoted_topic) = (quoted(name), quoted(topic));
        let quoted_rebuild = quoted(&rebuild_name(name));
        ExitReason::Stopped(format!(
            "topic {topic} was recreated: {evidence}. \
             To apply the topic from its beginning, run \"delete from projection_offsets where \
             projection in ({quoted_name}, {quoted_rebuild}) and topic = {quoted_topic}\" in this service's database and \
             restart the service."
        ))
    }

    /// Applies a batch, and retries until the database accepts it. Returns `None` at a shutdown.
    fn apply_with_retry(
        &self,
        consumer: &BaseConsumer<Assignment>,
        batch: &[BorrowedMessage<'_>],
    ) -> Option<Outcome> {
        let shared = &self.shared;
        let decoded = DecodedBatch::decode(&*self.projection, batch);
        let positions = consumer.context().positions();
        let mut backoff = backoff();
        while !shared.shutdown.is_cancelled() {
            let applied = shared.runtime.block_on(async {
                let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
                apply::apply_batch(
                    &*self.projection,
                    &shared.offsets(),
                    &mut conn,
                    &positions,
                    batch,
                    &decoded,
                )
                .await
                .map_err(|err| err.to_string())
            });
            match applied {
                Ok(outcome) => {
                    if matches!(outcome, Outcome::Applied { .. }) {
                        consumer
                            .context()
                            .advance(&apply::offset_ranges(&positions, batch));
                        store_group_offsets(consumer, batch);
                    }
                    return Some(outcome);
                }
                Err(reason) => {
                    shared.set_failing(&format!("failed to apply records: {reason}"));
                    shared.pause(backoff.next().unwrap_or(MAX_BACKOFF));
                }
            }
        }
        None
    }
}

/// An event that ends a batch early.
enum Interruption {
    Error(KafkaError),
    /// A record has this offset, which lies before the next one.
    OffsetRegressed(i64),
}

/// Polls a batch, and returns it with the event that ended it early. Waits only for the first record,
/// at most [`POLL_TIMEOUT`].
fn poll_batch(
    consumer: &BaseConsumer<Assignment>,
) -> (Vec<BorrowedMessage<'_>>, Option<Interruption>) {
    let mut batch = Vec::new();
    let mut interruption = None;
    let (mut timeout, mut bytes) = (POLL_TIMEOUT, 0);
    while batch.len() < MAX_BATCH_RECORDS && bytes < MAX_BATCH_BYTES {
        match consumer.poll(timeout) {
            Some(Ok(message)) if consumer.context().has_regressed(&message) => {
                interruption = Some(Interruption::OffsetRegressed(message.offset()));
                break;
            }
            Some(Ok(message)) => {
                bytes += message.payload_len();
                batch.push(message);
            }
            Some(Err(err)) => {
                interruption = Some(Interruption::Error(err));
                break;
            }
            None => break,
        }
        timeout = Duration::ZERO;
    }
    // A rebalance in one of these polls may have revoked partitions or assigned them again.
    let positions = consumer.context().positions();
    batch.retain(|message| {
        positions
            .get(&message.partition())
            .is_some_and(|(next, _)| message.offset() >= *next)
    });
    (batch, interruption)
}

/// Commits the offsets to the consumer group, for tools that show lag. Nothing depends on them.
fn store_group_offsets(consumer: &BaseConsumer<Assignment>, batch: &[BorrowedMessage<'_>]) {
    for message in batch {
        if let Err(error) = consumer.store_offset_from_message(message) {
            tracing::debug!(%error, "failed to store the offset for the consumer group");
            return;
        }
    }
}
