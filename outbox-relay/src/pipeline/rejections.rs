//! Applies the source's policy to records that Kafka rejects permanently.

use std::{ops::ControlFlow, time::Duration};

use cli::MAX_TOPIC_NAME_CHARS;
use tokio::time::Instant;

use super::{
    backoff::{MAX_BACKOFF, backoff},
    circuit_breaker::Verdict,
    error::{HaltCause, SourceError},
    outcome::{Cause, Outcome, Restart},
    publisher::{Publisher, flush_and_wait, verify_reader},
};
use crate::{
    config::OnRejection,
    dead_letters::{
        rejections::{MAX_PARKED_KEY_BYTES, MAX_PARKED_KEYS},
        storage::{self, Delivery, EventRef},
    },
    kafka::{RejectionCause, Sink, SinkError, record::Record},
    postgres::{
        reader::{Page, Row},
        window::Position,
    },
};

/// Parked events or dead letters that are retried at once.
const RETRY_ROWS: usize = 100;
/// The pause after a rejection of a parked event by the broker. Each one restarts the source, which publishes other events
/// meanwhile.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// The longest key in an error message.
const MAX_KEY_CHARS_IN_ERROR: usize = 200;

impl<S: Sink> Publisher<'_, S> {
    /// Publishes until shutdown or an error. Retries a row that halts the source with the same sink while that is usable: each
    /// sink takes one of the 32,766 epochs of a producer id.
    pub(super) async fn publish_and_retry(&mut self) -> Result<Outcome, SourceError> {
        let mut pauses = backoff();
        loop {
            let published = self.sink.acknowledgements().sent();
            let halt = match self.publish_rows().await {
                Err(err @ SourceError::Rejected { .. }) => err,
                ended => return ended,
            };
            let acknowledgements = self.sink.acknowledgements().clone();
            if acknowledgements.ensure_usable().is_err() {
                return Err(halt);
            }
            flush_and_wait(&mut self.sink).await?;
            self.store_rejections_and_register_cursor(acknowledgements.sent())
                .await?;
            self.failures.record_halt(&halt);
            self.one_by_one_rows = 1;
            if acknowledgements.sent() > published {
                pauses = backoff();
            }
            let pause = pauses.next().unwrap_or(MAX_BACKOFF);
            self.pause_until(Instant::now() + pause).await?;
            verify_reader(self.reader, self.leadership, self.config, self.clock).await?;
            self.sink.run_maintenance().await?;
            // The recovery of consecutive rejections parks dead letters, which the retried row must not pass.
            self.rejections.reload().await?;
            self.rejections.reload_soon();
        }
    }

    /// Parks or dead-letters a rejected row, or fails with [`SourceError::Rejected`] if the source halts. Breaks if the sink is
    /// unusable.
    pub(super) async fn handle_rejection(
        &mut self,
        row: &Row<'_>,
        position: Option<Position>,
        rejection: SinkError,
    ) -> Result<ControlFlow<Restart>, SourceError> {
        let can_park = rejection.cause() != RejectionCause::Clock
            && self.rejections.parked_keys() < MAX_PARKED_KEYS
            && row.key.len() <= MAX_PARKED_KEY_BYTES
            && row.topic.len() <= MAX_TOPIC_NAME_CHARS;
        let reason = rejection.to_string();
        let policy = self.config.on_rejection;
        let may_dead_letter = policy == OnRejection::DeadLetter
            && self.may_dead_letter(row.topic, &rejection).await?;
        match policy {
            OnRejection::ParkKey if can_park => {
                let (topic, key) = (row.topic, row.key);
                self.rejections
                    .park(row.into(), topic, key, &reason)
                    .await?;
                self.status.update(|status| status.rejected.parked += 1);
            }
            OnRejection::DeadLetter if may_dead_letter => {
                let (topic, key) = (row.topic, row.key);
                self.rejections
                    .add_dead_letter(row.into(), topic, key, reason.clone());
            }
            _ => {
                let halt_cause = match (policy, rejection.cause()) {
                    (_, RejectionCause::Clock)
                    | (OnRejection::DeadLetter, RejectionCause::Environment) => {
                        HaltCause::Environment
                    }
                    (OnRejection::DeadLetter, RejectionCause::Record) => HaltCause::Streak,
                    (OnRejection::ParkKey, _) => HaltCause::CannotPark,
                    (OnRejection::Halt, _) => HaltCause::Policy,
                };
                return Err(halting_error(row, halt_cause, rejection));
            }
        }
        let (source, event_id, seq) = (&self.config.name, row.event_id, row.seq);
        tracing::error!(%source, %event_id, seq, reason, policy = self.config.on_rejection.name(), "event rejected");
        // Another row at the same position is a copy of this one, or storing it fails.
        let event_id = Some(row.event_id);
        self.advance(position.or(Some(Position { seq, event_id })));
        let event_id = row.event_id;
        let acknowledgements = self.sink.acknowledgements().clone();
        if acknowledgements.ensure_usable().is_ok() {
            return Ok(ControlFlow::Continue(()));
        }
        // The broker has rejected it, so the sink is unusable. Everything before it is acknowledged, because it was sent
        // alone.
        self.store_rejections_and_register_cursor(acknowledgements.acknowledged())
            .await?;
        Ok(ControlFlow::Break(Restart {
            cause: Cause::Rejected { event_id },
            rejection,
            one_by_one_rows: self.one_by_one_rows,
        }))
    }

    /// Returns false if the rejection is, or seems to be, a fault of the environment and not of the record. Dead letters would
    /// let later events of their keys pass.
    async fn may_dead_letter(
        &mut self,
        topic: &str,
        rejection: &SinkError,
    ) -> Result<bool, SourceError> {
        if rejection.cause() != RejectionCause::Record {
            return Ok(false);
        }
        self.is_counting_rejections = true;
        loop {
            let acknowledged = self.sink.acknowledgements().acknowledged();
            let verdict = (self.circuit_breaker.lock()).record_rejection(topic, acknowledged);
            match verdict {
                Verdict::DeadLetter => return Ok(true),
                Verdict::Halt => return Ok(false),
                Verdict::WaitForAcknowledgements => flush_and_wait(&mut self.sink).await?,
            }
        }
    }

    /// Publishes the parked events to retry and the pending dead letters.
    pub(super) async fn retry_rejected(&mut self) -> Result<(), SourceError> {
        if !self.rejections.needs_reload() || *self.next_retry_at.lock() > Instant::now() {
            return Ok(());
        }
        self.rejections.reload().await?;
        let source = &self.config.name;
        if self.rejections.parked_keys() > 0 {
            let page = storage::read_parked_page(self.reader, source, RETRY_ROWS).await?;
            self.publish_parked_events(&page).await?;
            if !page.is_last() {
                self.rejections.reload_soon();
            }
        }
        if let Some(topic) = &self.config.dead_letter_topic {
            let page = storage::read_pending_page(self.reader, source, RETRY_ROWS).await?;
            self.publish_dead_letters(&page, topic).await?;
            if !page.is_last() {
                self.rejections.reload_soon();
            }
        }
        let parked_keys = self.rejections.parked_keys();
        self.status
            .update(|status| status.parked_keys = parked_keys);
        Ok(())
    }

    /// Publishes parked events together. If the broker rejects one of them, the next sink publishes them one by one.
    async fn publish_parked_events(&mut self, page: &Page) -> Result<(), SourceError> {
        let is_one_by_one = self.one_by_one_rows > 0;
        let mut sent = Vec::new();
        let mut rejected: Vec<(&str, &str)> = Vec::new();
        for row in page.rows() {
            let row = row?;
            let (topic, key) = (row.topic, row.key);
            if rejected.contains(&(topic, key)) {
                continue;
            }
            if is_one_by_one {
                self.one_by_one_rows = self.one_by_one_rows.max(1);
            }
            let Some(rejection) = self.send_row(&row).await? else {
                sent.push((&row).into());
                continue;
            };
            if is_one_by_one {
                // Each was sent alone, so those before are acknowledged.
                self.rejections.unpark(&std::mem::take(&mut sent)).await?;
            }
            if rejection.cause() == RejectionCause::Clock {
                // The retry must not end with it.
                return Err(halting_error(&row, HaltCause::Environment, rejection));
            }
            let reason = rejection.to_string();
            self.rejections.park_again((&row).into(), &reason).await?;
            let (source, event_id) = (&self.config.name, row.event_id);
            tracing::warn!(%source, %event_id, seq = row.seq, reason, "parked event rejected again");
            // A rejection by the broker makes the sink unusable, one by the sink itself does not.
            self.pause_retries_if_unusable()?;
            rejected.push((topic, key));
        }
        flush_and_wait(&mut self.sink).await?;
        self.rejections.unpark(&sent).await?;
        Ok(())
    }

    /// Fails if the sink is unusable. Then the next sink publishes other events before it retries.
    fn pause_retries_if_unusable(&self) -> Result<(), SinkError> {
        let usable = self.sink.acknowledgements().ensure_usable();
        if usable.is_err() {
            *self.next_retry_at.lock() = Instant::now() + RETRY_PAUSE;
        }
        usable
    }

    async fn publish_dead_letters(&mut self, page: &Page, topic: &str) -> Result<(), SourceError> {
        for row in page.rows() {
            let row = row?;
            let event = EventRef::from(&row);
            let Ok(record) = self.record_builder.build(&row) else {
                self.rejections
                    .record_delivery(event, Delivery::Rejected)
                    .await?;
                continue;
            };
            let record = Record {
                topic,
                partition: None,
                ..record
            };
            // Any rejection from here on is this dead letter's.
            flush_and_wait(&mut self.sink).await?;
            let sent = match self.sink.send(&record).await {
                Ok(()) => flush_and_wait(&mut self.sink).await,
                rejected => rejected,
            };
            match sent {
                Ok(()) => {
                    self.rejections
                        .record_delivery(event, Delivery::Sent)
                        .await?
                }
                Err(SinkError::Rejected { .. }) => {
                    // If the topic is gone, the rejection is not about this dead letter, which stays pending.
                    match self.sink.validate_topic(topic).await {
                        Err(err @ SinkError::Rejected { .. }) => {
                            return Err(SourceError::DeadLetterTopic(err));
                        }
                        known => known?,
                    }
                    self.rejections
                        .record_delivery(event, Delivery::Rejected)
                        .await?;
                    self.pause_retries_if_unusable()?;
                }
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }
}

/// Returns the error of a rejected row that blocks its source.
fn halting_error(row: &Row<'_>, halt_cause: HaltCause, rejection: SinkError) -> SourceError {
    SourceError::Rejected {
        halt_cause,
        event_id: row.event_id,
        seq: row.seq,
        key: row.key.chars().take(MAX_KEY_CHARS_IN_ERROR).collect(),
        source: rejection,
    }
}
