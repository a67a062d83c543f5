//! One source's life: become the leader, ship, and begin anew upon any error.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    error::SourceError,
    shipping::{FLUSH_TIMEOUT, HEALTHY_AFTER, Shipping, ensure_no_foreign_rows},
    trouble,
};
use crate::{
    config::{KafkaConfig, SinkKind, SourceConfig},
    dead_letters::aside::Aside,
    kafka::{KafkaSink, RdKafkaSink, Sink, SinkError, SinkOptions, TEND_INTERVAL},
    ops::status::{Role, SharedStatus},
    pipeline::route::Router,
    postgres::{
        leader::{Candidate, Election},
        reader::{ReadError, Reader},
        session,
    },
};

/// How often a standby tries to become the leader.
const ELECTION_INTERVAL: Duration = Duration::from_millis(200);
/// The pause after an error; it doubles, up to the second, with every further one before which
/// nothing was shipped or set aside.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// How often the log tells of an error that stays.
const REMINDER_INTERVAL: Duration = Duration::from_secs(60);
/// With fewer records in flight than this even a slow broker answers within the delivery timeout.
const MIN_IN_FLIGHT_RECORDS: usize = 64;

/// Ships `config`'s outbox to Kafka until `shutdown`.
pub(crate) async fn run(
    config: SourceConfig,
    kafka: KafkaConfig,
    status: SharedStatus,
    shutdown: CancellationToken,
) {
    let mut source = Source {
        max_in_flight: kafka.max_in_flight_records,
        one_by_one: 0,
        config,
        kafka,
        status,
        shutdown,
    };
    source.run().await;
    source.status.update(|status| status.role = Role::Stopped);
}

/// Ends when something that was to end with `shutdown` has had its time.
async fn patience_ends(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(FLUSH_TIMEOUT + Duration::from_secs(1)).await;
}

struct Source {
    config: SourceConfig,
    kafka: KafkaConfig,
    /// Halved when the broker was too slow for what was in flight, so that a slow one is not given
    /// the same again and again, timing out every time.
    max_in_flight: usize,
    /// Rows that are sent one by one, to find the one that was refused.
    one_by_one: u64,
    status: SharedStatus,
    shutdown: CancellationToken,
}

impl Source {
    async fn run(&mut self) {
        let name = self.config.name.clone();
        let mut backoff = MIN_BACKOFF;
        // Of the tries before: what is still so was said already.
        let (mut last_warning, mut last_refused) = (None, None);
        while !self.shutdown.is_cancelled() {
            let (started, shipped) = (Instant::now(), self.status.get().shipped);
            let shutdown = self.shutdown.clone();
            let led = tokio::select! {
                led = Box::pin(self.lead()) => led,
                () = patience_ends(&shutdown) => {
                    tracing::warn!(source = %name, "ended without an answer from the database");
                    return;
                }
            };
            let Err(err) = led else { return };
            let was_healthy = started.elapsed() > HEALTHY_AFTER;
            if was_healthy {
                self.max_in_flight = self.kafka.max_in_flight_records;
            } else if let SourceError::Sink(SinkError::Unavailable(_)) = err {
                self.max_in_flight = (self.max_in_flight / 2).max(MIN_IN_FLIGHT_RECORDS);
            }
            let is_set_aside = matches!(err, SourceError::SetAside { .. });
            if was_healthy || is_set_aside || self.status.get().shipped > shipped {
                backoff = MIN_BACKOFF;
                last_warning = None;
            }
            if let SourceError::Refused { event_id, .. } = err
                && last_refused.replace(event_id) != Some(event_id)
            {
                self.status.update(|status| status.refused.halted += 1);
            }
            self.one_by_one = match err {
                SourceError::OneOfMany { records, .. } => records,
                SourceError::SetAside { one_by_one, .. } => one_by_one,
                // The next row is the one that was refused, or can't be read.
                SourceError::Refused { .. } | SourceError::Read(ReadError::Unreadable { .. }) => 1,
                _ => 0,
            };
            let trouble = trouble::of(&err);
            let (error, fix) = (&trouble.error, trouble.fix);
            let is_told = last_warning
                .as_ref()
                .is_some_and(|(told, at): &(String, Instant)| {
                    told == error && at.elapsed() < REMINDER_INTERVAL
                });
            if is_told {
                tracing::debug!(source = %name, error, ?backoff, "shipping begins anew");
            } else if trouble.reason.halts() {
                tracing::error!(source = %name, error, fix, "halted");
            } else {
                tracing::warn!(source = %name, error, fix, ?backoff, "shipping begins anew");
            }
            if !is_told {
                last_warning = Some((error.clone(), Instant::now()));
            }
            self.status.update(|status| status.begin_anew(trouble));
            self.pause(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Waits to be the leader, then ships until the end or an error.
    async fn lead(&mut self) -> Result<(), SourceError> {
        let Some(election) = self.elect().await? else {
            return Ok(());
        };
        let epoch = election.leadership.epoch();
        if self.status.get().trouble.is_none() {
            tracing::info!(source = %self.config.name, epoch, "leading");
        }
        let options = SinkOptions {
            kafka: self.kafka.clone(),
            max_in_flight: self.max_in_flight,
            tend_interval: TEND_INTERVAL,
            producer_name: election.producer_name.clone(),
            start: election.cursor.clone(),
        };
        let lease = election.leadership.lease().clone();
        match self.kafka.sink {
            SinkKind::Kafka => {
                self.lead_with(&election, KafkaSink::open(options, lease))
                    .await
            }
            SinkKind::RdKafka => {
                self.lead_with(&election, RdKafkaSink::open(options, lease))
                    .await
            }
        }
    }

    /// Opens the sink, and ships with it.
    async fn lead_with<S: Sink>(
        &mut self,
        election: &Election,
        opening: impl Future<Output = Result<S, SinkError>>,
    ) -> Result<(), SourceError> {
        let leadership = &election.leadership;
        let elected_at = Instant::now();
        let opening = async {
            let url = &self.config.database_url;
            let reader = session::connect(url, "outbox-relay reader").await?;
            leadership.vouch_for(&reader).await?;
            let reader = Reader::new(reader.into_client(), &self.config.mapping).await?;
            ensure_no_foreign_rows(&reader, &self.config).await?;
            let mut sink = opening.await.map_err(SourceError::Unopened)?;
            if let Some(topic) = &self.config.dead_letter_topic {
                // A letter that is refused there is not tried again.
                sink.look_up(topic).await.map_err(|err| match err {
                    SinkError::Refused { .. } => SourceError::DeadLetterTopic(err),
                    err => SourceError::Unopened(err),
                })?;
            }
            if !sink.is_fenced() {
                // The last leader's records may still arrive.
                tokio::time::sleep_until(elected_at + election.wait).await;
            }
            Ok::<_, SourceError>((reader, sink))
        };
        let (reader, sink) = tokio::select! {
            opened = opening => opened?,
            err = leadership.stay(&election.cursor) => return Err(err.into()),
            () = self.shutdown.cancelled() => return Ok(()),
        };
        self.status
            .update(|status| status.epoch = Some(leadership.epoch()));
        let shipping = Shipping {
            config: &self.config,
            max_in_flight: self.kafka.max_in_flight_records,
            status: &self.status,
            shutdown: &self.shutdown,
            reader: &reader,
            sink,
            router: Router::new(&self.config.ce_source, &self.config.content_type),
            aside: Aside::load(leadership, &self.config.mapping).await?,
            one_by_one: self.one_by_one,
            has_warned_of_repeated_seq: false,
            cursor: election.cursor.clone(),
        };
        Box::pin(shipping.run(leadership)).await
    }

    /// Stands by until this relay is the leader; none if it is asked to end before.
    async fn elect(&self) -> Result<Option<Election>, SourceError> {
        let candidate = Candidate::new(&self.config.database_url, &self.config.name).await?;
        while !self.shutdown.is_cancelled() {
            if candidate.try_lock().await? {
                return Ok(Some(
                    candidate
                        .lead(&self.config.mapping, self.kafka.delivery_timeout)
                        .await?,
                ));
            }
            self.status.update(|status| {
                status.role = Role::Standby;
                status.trouble = None;
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
