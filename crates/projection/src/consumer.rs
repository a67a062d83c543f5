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
    sync::{Notify, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Projection,
    apply::{self, Outcome},
    assignment::Assignment,
    database, dead_letter_maintenance,
    decoded::DecodedBatch,
    handle::{
        ConsumerConfig, ConsumerHandle, ConsumerState, MAX_BACKOFF, MIN_BACKOFF, Shared, backoff,
    },
    progress::{Activity, Progress},
    session, supervisor,
    topic_log::RESET_HINT,
    topic_monitor::TopicMonitor,
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
    let (ended_sender, ended) = oneshot::channel();
    let name = config.name.clone();
    let shared = Arc::new(Shared {
        config,
        pool,
        runtime: Handle::current(),
        shutdown,
        progress: Progress::new(),
    });
    let dead_letters = Arc::new(Notify::new());
    let maintenance = dead_letter_maintenance::maintain(Arc::clone(&shared), dead_letters.clone());
    tokio::spawn(maintenance);
    tokio::spawn(supervisor::supervise(Arc::clone(&shared), state_sender));
    let worker = ConsumerWorker {
        shared,
        projection,
        dead_letters,
    };
    thread::spawn(move || {
        let _ended = ended_sender;
        let _guard = PanicGuard(Arc::clone(&worker.shared));
        worker.run();
    });
    ConsumerHandle {
        projection: name,
        state,
        ended,
    }
}

/// Sets the state to stopped if the thread panics, which would otherwise go unnoticed.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason = "consumer panicked, which is a bug. Look up the panic in the log, and restart the service.";
            self.0.progress.stop(reason.to_owned());
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
        let Shared {
            config, progress, ..
        } = &*self.shared;
        while !self.shared.shutdown.is_cancelled() {
            progress.begin(Activity::Connecting);
            match self.consume() {
                Ok(ExitReason::Shutdown) => return,
                Ok(ExitReason::OffsetConflict) => {
                    tracing::info!(projection = %config.name, "another consumer advanced the offsets, restarting from the stored offsets");
                }
                Ok(ExitReason::Stopped(reason)) => {
                    progress.stop(reason);
                    return;
                }
                Err(err) => {
                    progress.report_error(format!("Kafka: {err}"));
                    self.shared.pause(MAX_BACKOFF);
                }
            }
        }
    }

    fn consume(&self) -> Result<ExitReason, KafkaError> {
        let progress = &self.shared.progress;
        progress.reset();
        let consumer = Assignment::create_consumer(&self.shared)?;
        let topic_monitor = TopicMonitor::start(&self.shared)?;
        let exit = self.consume_with(&consumer, &topic_monitor);
        progress.begin(Activity::Closing);
        exit
    }

    fn consume_with(
        &self,
        consumer: &BaseConsumer<Assignment>,
        topic_monitor: &TopicMonitor,
    ) -> Result<ExitReason, KafkaError> {
        let progress = &self.shared.progress;
        loop {
            if self.shared.shutdown.is_cancelled() {
                return Ok(ExitReason::Shutdown);
            }
            progress.begin(Activity::Polling);
            let (batch, interruption) = poll_batch(consumer, progress);
            if !batch.is_empty() {
                match self.apply_with_retry(consumer, &batch) {
                    Some(Outcome::Applied { dead_lettered: 0 }) => {}
                    Some(Outcome::Applied { .. }) => self.dead_letters.notify_one(),
                    Some(Outcome::OffsetConflict) => return Ok(ExitReason::OffsetConflict),
                    None => return Ok(ExitReason::Shutdown),
                }
            }
            match interruption {
                None => {}
                Some(Interruption::Error(err)) => {
                    if let Some(exit) = self.handle_error(err)? {
                        return Ok(exit);
                    }
                }
                Some(Interruption::OffsetRegressed(offset)) => {
                    return Ok(self.stop(&format!(
                        "was recreated: a record has the earlier offset {offset}"
                    )));
                }
            }
            let change = consumer.context().take_change();
            if let Some(change) = change.or_else(|| topic_monitor.take_change()) {
                return Ok(self.stop(&change.to_string()));
            }
            if consumer.context().has_failed() {
                return Err(KafkaError::Rebalance(RDKafkaErrorCode::AssignmentLost));
            }
        }
    }

    /// Reports an error of the consumer, or returns it if only a new consumer recovers from it.
    fn handle_error(&self, err: KafkaError) -> Result<Option<ExitReason>, KafkaError> {
        use RDKafkaErrorCode::*;
        let progress = &self.shared.progress;
        let code = match err {
            KafkaError::MessageConsumptionFatal(_) => return Err(err),
            KafkaError::MessageConsumption(code) => Some(code),
            _ => None,
        };
        match code {
            Some(AutoOffsetReset) => {
                let exit =
                    self.stop("was recreated or truncated: the stored offset is out of range");
                return Ok(Some(exit));
            }
            Some(LogTruncation) => {
                let exit = self.stop("was truncated by an unclean leader election");
                return Ok(Some(exit));
            }
            // librdkafka recovers from these, and reports each of them in turn.
            Some(AllBrokersDown | BrokerTransportFailure | Resolve) => {
                progress.report_error("no connection to Kafka".to_owned());
            }
            Some(InvalidSessionTimeout) => {
                let reason = session::describe_rejection(&self.shared.config);
                return Ok(Some(ExitReason::Stopped(reason)));
            }
            Some(GroupAuthorizationFailed | GroupMaxSizeReached | InconsistentGroupProtocol) => {
                progress.report_group_error(format!("Kafka: {err}"))
            }
            _ => {
                progress.report_error(format!("Kafka: {err}"));
                self.shared.pause(MIN_BACKOFF);
            }
        }
        Ok(None)
    }

    /// Stops: an operator has to decide, because the topic may hold other records.
    fn stop(&self, what: &str) -> ExitReason {
        let topic = &self.shared.config.topic;
        ExitReason::Stopped(format!("topic {topic} {what}. {RESET_HINT}"))
    }

    /// Applies a batch, and retries until the database accepts it. Returns `None` at a shutdown.
    fn apply_with_retry(
        &self,
        consumer: &BaseConsumer<Assignment>,
        batch: &[BorrowedMessage<'_>],
    ) -> Option<Outcome> {
        let shared = &self.shared;
        let (mut remaining, mut part_len) = (batch, batch.len());
        let mut total_dead_lettered = 0;
        let mut backoff = backoff();
        while !remaining.is_empty() {
            if shared.shutdown.is_cancelled() {
                return None;
            }
            let (part, rest) = remaining.split_at(part_len.min(remaining.len()));
            match self.apply(part) {
                Ok(Outcome::Applied { dead_lettered }) => {
                    total_dead_lettered += dead_lettered;
                    store_group_offsets(consumer, part);
                    remaining = rest;
                }
                Ok(Outcome::OffsetConflict) => return Some(Outcome::OffsetConflict),
                Err(err) => {
                    // A database that is only slow must be able to apply a part.
                    if err.is_timeout() {
                        part_len = part.len().div_ceil(2);
                    }
                    let reason = format!("failed to apply records to the database: {err}");
                    shared.progress.report_error(reason);
                    shared.pause(backoff.next().unwrap_or(MAX_BACKOFF));
                }
            }
        }
        Some(Outcome::Applied {
            dead_lettered: total_dead_lettered,
        })
    }

    fn apply(&self, part: &[BorrowedMessage<'_>]) -> Result<Outcome, database::Error> {
        let Shared {
            runtime, progress, ..
        } = &*self.shared;
        progress.begin(Activity::Decoding);
        let decoded = DecodedBatch::decode(&*self.projection, part);
        let positions = progress.positions();
        let offsets = self.shared.offsets();
        let begin_transaction = || progress.begin(Activity::Applying);
        begin_transaction();
        let applying = database::run(&self.shared, async |conn| {
            apply::apply_batch(
                &*self.projection,
                &offsets,
                conn,
                &positions,
                part,
                &decoded,
                &begin_transaction,
            )
            .await
        });
        let outcome = runtime.block_on(applying)?;
        if matches!(outcome, Outcome::Applied { .. }) {
            progress.advance(&apply::offset_ranges(&positions, part));
        }
        Ok(outcome)
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
fn poll_batch<'a>(
    consumer: &'a BaseConsumer<Assignment>,
    progress: &Progress,
) -> (Vec<BorrowedMessage<'a>>, Option<Interruption>) {
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
    let positions = progress.positions();
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
