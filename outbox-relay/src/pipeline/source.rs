//! Runs one source: waits for leadership, publishes, recovers from errors.

use std::time::Duration;

use backon::ExponentialBackoff;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    backoff::{MAX_BACKOFF, backoff},
    circuit_breaker::CircuitBreaker,
    error::SourceError,
    failures::Failures,
    outcome::{Cause, Outcome, Restart},
    publisher::{FLUSH_TIMEOUT, HEALTHY_AFTER, Publisher, verify_reader},
};
use crate::{
    clock::Clock,
    config::{KafkaConfig, SinkKind, SourceConfig},
    dead_letters::rejections::Rejections,
    hints,
    kafka::{KafkaSink, MAINTENANCE_INTERVAL, RdKafkaSink, Sink, SinkError, SinkOptions},
    ops::status::{Failure, Reason, Role, SharedStatus},
    pipeline::record_builder::RecordBuilder,
    postgres::{
        leader::{Candidate, Election},
        reader::Reader,
        session,
    },
};

/// The interval at which a standby tries to become leader.
const ELECTION_INTERVAL: Duration = Duration::from_millis(200);
/// A wait for records of a predecessor that is shorter is not reported.
const MAX_UNREPORTED_WAIT: Duration = Duration::from_secs(1);
/// The lower bound of records in flight after halving. Even a slow broker acknowledges this many within the delivery timeout.
const MIN_IN_FLIGHT_RECORDS: usize = 64;

/// Publishes the outbox of `config` to Kafka until `shutdown`.
pub(crate) async fn run(
    config: SourceConfig,
    kafka: KafkaConfig,
    status: SharedStatus,
    shutdown: CancellationToken,
) {
    let clock = Clock::default();
    let mut source = Source {
        max_in_flight: kafka.max_in_flight_records,
        one_by_one_rows: 0,
        backoff: backoff(),
        failures: Failures::new(status.clone(), clock.clone()),
        clock,
        next_retry_at: Mutex::new(Instant::now()),
        circuit_breaker: Mutex::new(CircuitBreaker::new(config.max_consecutive_rejections)),
        config,
        kafka,
        status,
        shutdown,
    };
    source.run().await;
    source.status.update(|status| status.role = Role::Stopped);
}

/// Halves a limit on records in flight, down to [`MIN_IN_FLIGHT_RECORDS`].
fn halved(max_in_flight: usize) -> usize {
    (max_in_flight / 2).max(MIN_IN_FLIGHT_RECORDS.min(max_in_flight))
}

/// Waits for the shutdown and then for the longest time that the drain may take.
async fn drain_timeout(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(FLUSH_TIMEOUT + Duration::from_secs(1)).await;
}

struct Source {
    config: SourceConfig,
    kafka: KafkaConfig,
    /// The limit on records in flight of the next sink. Halved when the broker was too slow, so that it does not time out
    /// again and again.
    max_in_flight: usize,
    /// Rows that the next attempt publishes one by one, to find the rejected one.
    one_by_one_rows: u64,
    backoff: ExponentialBackoff,
    failures: Failures,
    clock: Clock,
    /// Parked events are not retried before.
    next_retry_at: Mutex<Instant>,
    circuit_breaker: Mutex<CircuitBreaker>,
    status: SharedStatus,
    shutdown: CancellationToken,
}

impl Source {
    /// Leads, recovers and pauses until shutdown.
    async fn run(&mut self) {
        while !self.shutdown.is_cancelled() {
            let (started, published) = (Instant::now(), self.status.get().published);
            let shutdown = self.shutdown.clone();
            let led = tokio::select! {
                led = Box::pin(self.lead()) => led,
                () = drain_timeout(&shutdown) => {
                    tracing::warn!(source = %self.config.name, "shut down without a response from the database");
                    return;
                }
            };
            let was_healthy = started.elapsed() > HEALTHY_AFTER;
            if was_healthy {
                self.max_in_flight = self.kafka.max_in_flight_records;
            }
            if was_healthy || self.status.get().published > published {
                self.reset_backoff();
            }
            match led {
                Ok(Outcome::Shutdown) => return,
                Ok(Outcome::Restart(restart)) => self.prepare_restart(&restart),
                Err(err) => self.recover(&err),
            }
            let backoff = self.backoff.next().unwrap_or(MAX_BACKOFF);
            self.pause(backoff).await;
        }
    }

    fn reset_backoff(&mut self) {
        self.backoff = backoff();
        self.failures.forget_logged();
    }

    /// Prepares the next attempt after a rejection that made the sink unusable.
    fn prepare_restart(&mut self, restart: &Restart) {
        if let Cause::Rejected { .. } = restart.cause {
            // Progress: one row less that can be rejected.
            self.reset_backoff();
        }
        self.one_by_one_rows = restart.one_by_one_rows;
        self.failures.record_restart(restart);
    }

    /// Prepares the next attempt after an error.
    fn recover(&mut self, err: &SourceError) {
        let recovery = self.failures.record_error(err);
        if recovery.halves_in_flight {
            self.max_in_flight = halved(self.max_in_flight);
        }
        self.one_by_one_rows = recovery.one_by_one_rows;
    }

    /// Waits for leadership, then publishes until shutdown or an error.
    async fn lead(&self) -> Result<Outcome, SourceError> {
        let Some(election) = self.elect().await? else {
            return Ok(Outcome::Shutdown);
        };
        let epoch = election.leadership.epoch();
        if self.status.get().failure.is_none() {
            tracing::info!(source = %self.config.name, epoch, "leading");
        }
        let options = SinkOptions {
            kafka: self.kafka.clone(),
            max_in_flight: self.max_in_flight,
            maintenance_interval: MAINTENANCE_INTERVAL,
            producer_name: election.producer_name.clone(),
            start: election.cursor.clone(),
            clock: self.clock.clone(),
        };
        let lease = election.leadership.lease().clone();
        match self.kafka.sink {
            SinkKind::Kafka => {
                Box::pin(self.lead_with(&election, KafkaSink::open(options, lease))).await
            }
            SinkKind::RdKafka => {
                Box::pin(self.lead_with(&election, RdKafkaSink::open(options, lease))).await
            }
        }
    }

    /// Opens the reader and the sink, and publishes.
    async fn lead_with<S: Sink>(
        &self,
        election: &Election,
        opening: impl Future<Output = Result<S, SinkError>>,
    ) -> Result<Outcome, SourceError> {
        let leadership = &election.leadership;
        let elected_at = Instant::now();
        let opening = async {
            let url = &self.config.database_url;
            let reader = session::connect(url, "outbox-relay reader").await?;
            let reader = Reader::new(reader.into_client(), &self.config.mapping).await?;
            verify_reader(&reader, leadership, &self.config, &self.clock).await?;
            self.status.set_clock_skew(self.clock.database_ahead_s());
            let mut sink = opening.await.map_err(SourceError::Opening)?;
            if let Some(topic) = &self.config.dead_letter_topic {
                // A dead letter that the topic rejects is not retried, so a missing topic must be found now.
                sink.validate_topic(topic).await.map_err(|err| match err {
                    SinkError::Rejected { .. } => SourceError::DeadLetterTopic(err),
                    err => SourceError::Opening(err),
                })?;
            }
            if !sink.has_fencing() {
                self.wait_for_predecessor(elected_at + election.wait).await;
            }
            Ok::<_, SourceError>((reader, sink))
        };
        let (reader, sink) = tokio::select! {
            opened = opening => opened?,
            err = leadership.send_heartbeats(&election.cursor) => return Err(err.into()),
            () = self.shutdown.cancelled() => return Ok(Outcome::Shutdown),
        };
        self.status
            .update(|status| status.epoch = Some(leadership.epoch()));
        let publisher = Publisher {
            config: &self.config,
            configured_max_in_flight: self.kafka.max_in_flight_records,
            status: &self.status,
            shutdown: &self.shutdown,
            leadership,
            reader: &reader,
            sink,
            record_builder: RecordBuilder::new(&self.config.ce_source, &self.config.content_type),
            rejections: Rejections::load(election, &self.config.mapping).await?,
            one_by_one_rows: self.one_by_one_rows,
            is_counting_rejections: self.circuit_breaker.lock().is_counting(),
            clock: &self.clock,
            failures: &self.failures,
            next_retry_at: &self.next_retry_at,
            circuit_breaker: &self.circuit_breaker,
            has_warned_of_repeated_seq: false,
            cursor: election.cursor.clone(),
        };
        let acknowledgements = publisher.sink.acknowledgements().clone();
        let outcome = Box::pin(publisher.run()).await;
        let acknowledged = acknowledgements.acknowledged();
        self.circuit_breaker.lock().end_sink(acknowledged);
        outcome
    }

    /// Waits until records of the previous leader, or of this relay's previous sink, can no longer arrive.
    async fn wait_for_predecessor(&self, until: Instant) {
        let wait = until.saturating_duration_since(Instant::now());
        if wait > MAX_UNREPORTED_WAIT {
            let seconds = wait.as_secs();
            tracing::info!(source = %self.config.name, seconds, "waiting until records of the previous producer can no longer arrive");
            let failure = Failure {
                reason: Reason::Kafka,
                error: format!(
                    "waiting for {seconds} s, in which records of the previous producer may still arrive"
                ),
                hint: Some(hints::UNFENCED),
            };
            self.status.update(|status| status.failure = Some(failure));
        }
        tokio::time::sleep_until(until).await;
    }

    /// Waits until this relay is elected leader. Returns `None` if the shutdown comes first.
    async fn elect(&self) -> Result<Option<Election>, SourceError> {
        let candidate = Candidate::new(&self.config.database_url, &self.config.name).await?;
        while !self.shutdown.is_cancelled() {
            if candidate.try_lock().await? {
                return Ok(Some(
                    candidate
                        .lead(&self.config, self.kafka.delivery_timeout)
                        .await?,
                ));
            }
            self.status.update(|status| {
                status.role = Role::Standby;
                status.failure = None;
            });
            self.pause(ELECTION_INTERVAL).await;
        }
        Ok(None)
    }

    async fn pause(&self, length: Duration) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_records_in_flight_never_rises_when_it_is_halved() {
        let limits = [20_000, 100, 64, 63, 1].map(halved);
        assert_eq!(limits, [10_000, 64, 64, 63, 1]);
    }
}
