//! The consumer: a thread of its own that polls Kafka and applies what comes.
//!
//! A thread and not a task, because librdkafka calls back while it is polled, and the callback that
//! assigns partitions has to ask the database where they begin.

use std::{sync::Arc, thread, time::Duration};

use diesel_async::{AsyncPgConnection, pooled_connection::deadpool::Pool};
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
    dead_letter_upkeep,
    decoded::Decoded,
    following::{Following, MAX_BACKOFF, MIN_BACKOFF, Options, Shared, State, backoff},
    rebuild::rebuild_name,
    topic_monitor::{Look, TopicMonitor},
};

/// Records of a batch at most. More per transaction is faster in a rebuild and keeps the offset's
/// row locked for longer.
const MAX_BATCH_RECORDS: usize = 1_000;
/// Bytes of their payloads, but for the last.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// How long a poll waits for a record; it bounds how late a shutdown is noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// Follows a topic until `shutdown`.
pub fn follow<P: Projection>(
    options: Options,
    projection: Arc<P>,
    pool: Pool<AsyncPgConnection>,
    shutdown: CancellationToken,
) -> Following {
    let (state_now, state) = watch::channel(State::Starting);
    let runtime = Handle::current();
    let shared = Arc::new(Shared {
        options,
        pool,
        runtime,
        shutdown,
        state: state_now,
    });
    let dead_letters = Arc::new(Notify::new());
    let upkeep = dead_letter_upkeep::look_after(Arc::clone(&shared), dead_letters.clone());
    tokio::spawn(upkeep);
    let follower = Follower {
        shared,
        projection,
        dead_letters,
    };
    let thread = thread::spawn(move || {
        let _guard = PanicGuard(Arc::clone(&follower.shared));
        follower.run();
    });
    Following { state, thread }
}

/// Tells of the end of the thread where nobody has asked for it, which nobody else would notice.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason =
                "it panicked, which is a bug: restart the service, and see its log for why";
            self.0.stop(reason.to_owned());
        }
    }
}

struct Follower<P> {
    shared: Arc<Shared>,
    projection: Arc<P>,
    /// Is told of new ones.
    dead_letters: Arc<Notify>,
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
        while !self.shared.shutdown.is_cancelled() {
            match self.consume() {
                Ok(End::Shutdown) => return,
                Ok(End::Overtaken) => {
                    tracing::info!(projection = %name, "overtaken by another consumer, going on from its offset");
                }
                Ok(End::Stopped(reason)) => {
                    self.shared.stop(reason);
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
        let consumer = Assignment::consumer(&self.shared)?;
        let topic_monitor = TopicMonitor::start(&self.shared, consumer.context())?;
        loop {
            if self.shared.shutdown.is_cancelled() {
                return Ok(End::Shutdown);
            }
            let (batch, interruption) = next_batch(&consumer);
            if !batch.is_empty() {
                match self.apply_until_done(&consumer, &batch) {
                    Some(Outcome::Applied { dead_lettered: 0 }) => {}
                    Some(Outcome::Applied { .. }) => self.dead_letters.notify_one(),
                    Some(Outcome::Overtaken) => return Ok(End::Overtaken),
                    None => return Ok(End::Shutdown),
                }
                self.shared.succeed();
            }
            let error = match interruption {
                None => None,
                Some(Interruption::Error(err)) => Some(err),
                Some(Interruption::Backwards(offset)) => {
                    return Ok(self.recreated(&format!("it went back to offset {offset}")));
                }
            };
            if error.is_none()
                && let Some(look) = topic_monitor.news()
                && let Some(end) = self.heed(look, consumer.context())
            {
                return Ok(end);
            }
            match error {
                None => {}
                Some(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                    return Ok(self.recreated("it no longer has the offset that is stored"));
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
            if consumer.context().has_failed() {
                return Err(KafkaError::Rebalance(RDKafkaErrorCode::AssignmentLost));
            }
        }
    }

    /// Takes notice of what the topic_monitor has seen.
    fn heed(&self, look: Look, assignment: &Assignment) -> Option<End> {
        let topic = &self.shared.options.topic;
        match look {
            Look::NoTopic => self.shared.fail(&format!("Kafka has no topic {topic}")),
            Look::NoConnection => self.shared.fail("no connection to Kafka"),
            Look::Recreated { next, end } => {
                let what = format!("it ends before offset {end}, and {next} is next");
                return Some(self.recreated(&what));
            }
            Look::Fine if assignment.has_joined() => self.shared.succeed(),
            Look::Fine if self.shared.is_starting() => {}
            Look::Fine => self
                .shared
                .fail("waiting for the consumer group to give out its partitions"),
        }
        None
    }

    /// What a person has to decide: nothing here knows whether the records are the same ones.
    fn recreated(&self, what: &str) -> End {
        let Options { topic, name, .. } = &self.shared.options;
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let (of_name, of_topic) = (quoted(name), quoted(topic));
        let of_rebuild = quoted(&rebuild_name(name));
        End::Stopped(format!(
            "topic {topic} is not the one that was followed: {what}; was it deleted and made anew? \
             To apply it from its beginning, run \"delete from projection_offsets where \
             projection in ({of_name}, {of_rebuild}) and topic = {of_topic}\" in this service's database, and \
             restart the service"
        ))
    }

    /// Applies a batch, trying again for as long as the database keeps it from doing so; none if it
    /// is asked to end meanwhile.
    fn apply_until_done(
        &self,
        consumer: &BaseConsumer<Assignment>,
        batch: &[BorrowedMessage<'_>],
    ) -> Option<Outcome> {
        let shared = &self.shared;
        let decoded = Decoded::of(&*self.projection, batch);
        let from = consumer.context().positions();
        let mut backoff = backoff();
        while !shared.shutdown.is_cancelled() {
            let applied = shared.runtime.block_on(async {
                let mut conn = shared.pool.get().await.map_err(|err| err.to_string())?;
                apply::apply(
                    &*self.projection,
                    &shared.offsets(),
                    &mut conn,
                    &from,
                    batch,
                    &decoded,
                )
                .await
                .map_err(|err| err.to_string())
            });
            match applied {
                Ok(outcome) => {
                    if matches!(outcome, Outcome::Applied { .. }) {
                        consumer.context().moved(&apply::moves(&from, batch));
                        tell_kafka(consumer, batch);
                    }
                    return Some(outcome);
                }
                Err(reason) => {
                    shared.fail(&format!("can't apply records: {reason}"));
                    shared.pause(backoff.next().unwrap_or(MAX_BACKOFF));
                }
            }
        }
        None
    }
}

/// What ends a batch, but its bound.
enum Interruption {
    Error(KafkaError),
    /// The topic goes on from this offset, which lies before the next one.
    Backwards(i64),
}

/// What is there, up to the bound, and what came behind it. Waits a little for the first record
/// only.
fn next_batch(
    consumer: &BaseConsumer<Assignment>,
) -> (Vec<BorrowedMessage<'_>>, Option<Interruption>) {
    let mut batch = Vec::new();
    let mut interruption = None;
    let (mut timeout, mut bytes) = (POLL_TIMEOUT, 0);
    while batch.len() < MAX_BATCH_RECORDS && bytes < MAX_BATCH_BYTES {
        match consumer.poll(timeout) {
            Some(Ok(message)) if consumer.context().is_backwards(&message) => {
                interruption = Some(Interruption::Backwards(message.offset()));
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
    // A rebalance in one of these polls can have taken partitions away, or given them anew.
    let positions = consumer.context().positions();
    batch.retain(|message| {
        positions
            .get(&message.partition())
            .is_some_and(|(next, _)| message.offset() >= *next)
    });
    (batch, interruption)
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
