//! What becomes of a record that Kafka rejects for good, by the source's policy.

use std::ops::ControlFlow;

use cli::MAX_TOPIC_NAME_CHARS;

use super::{
    error::SourceError,
    outcome::{Cause, Restart},
    publisher::{Publisher, deliver},
};
use crate::{
    config::OnRejection,
    dead_letters::{
        rejections::{MAX_PARKED_KEY_BYTES, MAX_PARKED_KEYS},
        storage::{self, EventRef, InTopic},
    },
    kafka::{Sink, SinkError, record::Record},
    postgres::{
        reader::{Page, Row},
        window::Position,
    },
};

/// Events set aside that are tried again at once.
const LOOK_ROWS: usize = 100;
/// Of a key, in an error.
const SHOWN_KEY_CHARS: usize = 200;

impl<S: Sink> Publisher<'_, S> {
    /// Sets a rejected row aside, or ends with an error that says that it is in the way. Breaks if the sink can't be used any more.
    pub(super) async fn dead_lettered(
        &mut self,
        row: &Row<'_>,
        position: Option<Position>,
        rejection: SinkError,
    ) -> Result<ControlFlow<Restart>, SourceError> {
        let can_park = self.rejections.parked_keys() < MAX_PARKED_KEYS
            && row.key.len() <= MAX_PARKED_KEY_BYTES
            && row.topic.len() <= MAX_TOPIC_NAME_CHARS;
        let reason = rejection.to_string();
        match self.config.on_rejection {
            OnRejection::ParkKey if can_park => {
                let (topic, key) = (row.topic, row.key);
                self.rejections
                    .park(row.into(), topic, key, &reason)
                    .await?;
                self.status.update(|status| status.rejected.parked += 1);
            }
            OnRejection::DeadLetter => {
                let (topic, key) = (row.topic, row.key);
                self.rejections
                    .add_dead_letter(row.into(), topic, key, reason.clone());
            }
            OnRejection::ParkKey | OnRejection::Halt => {
                return Err(SourceError::Rejected {
                    event_id: row.event_id,
                    seq: row.seq,
                    key: row.key.chars().take(SHOWN_KEY_CHARS).collect(),
                    source: rejection,
                });
            }
        }
        let (source, event_id, seq) = (&self.config.name, row.event_id, row.seq);
        tracing::error!(%source, %event_id, seq, reason, policy = self.config.on_rejection.name(), "event set aside");
        // A row that shares its position is a copy of it, or storing it fails.
        let event_id = Some(row.event_id);
        self.pass(position.or(Some(Position { seq, event_id })));
        let event_id = row.event_id;
        let acknowledgements = self.sink.acknowledgements().clone();
        if acknowledgements.ensure_usable().is_ok() {
            return Ok(ControlFlow::Continue(()));
        }
        // The broker has rejected it, and the sink is of no use any more. Everything before it was
        // acknowledged, because it was sent alone.
        self.mark(acknowledgements.acknowledged()).await?;
        Ok(ControlFlow::Break(Restart {
            cause: Cause::Rejected { event_id },
            rejection: rejection,
            one_at_a_time: self.one_by_one,
        }))
    }

    /// Publishes what was set aside and is to be tried again.
    pub(super) async fn retry_parked(&mut self) -> Result<(), SourceError> {
        if !self.rejections.needs_reload() {
            return Ok(());
        }
        self.rejections.reload().await?;
        let source = &self.config.name;
        if self.rejections.parked_keys() > 0 {
            let page = storage::parked_page(self.reader, source, LOOK_ROWS).await?;
            self.publish_parked(&page).await?;
            if !page.is_last() {
                self.rejections.reload_soon();
            }
        }
        if let Some(topic) = &self.config.dead_letter_topic {
            let page = storage::pending_page(self.reader, source, LOOK_ROWS).await?;
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

    async fn publish_parked(&mut self, page: &Page) -> Result<(), SourceError> {
        let mut rejected: Vec<(&str, &str)> = Vec::new();
        for row in page.rows() {
            let row = row?;
            let (topic, key) = (row.topic, row.key);
            if rejected.contains(&(topic, key)) {
                continue;
            }
            self.one_by_one = self.one_by_one.max(1);
            match self.send_row(&row).await? {
                None => self.rejections.unpark((&row).into(), topic, key).await?,
                Some(rejection) => {
                    let reason = rejection.to_string();
                    self.rejections.park_again((&row).into(), &reason).await?;
                    let (source, event_id) = (&self.config.name, row.event_id);
                    tracing::warn!(%source, %event_id, seq = row.seq, reason, "rejected again, stays parked");
                    // The broker's rejection ends the sink; its own does not.
                    self.sink.acknowledgements().ensure_usable()?;
                    rejected.push((topic, key));
                }
            }
        }
        Ok(())
    }

    async fn publish_dead_letters(&mut self, page: &Page, topic: &str) -> Result<(), SourceError> {
        for row in page.rows() {
            let row = row?;
            let event = EventRef::from(&row);
            let Ok(record) = self.router.route(&row) else {
                self.rejections
                    .set_in_topic(event, InTopic::Rejected)
                    .await?;
                continue;
            };
            let record = Record { topic, ..record };
            // What goes wrong from here on is this dead_letter's.
            deliver(&mut self.sink).await?;
            let sent = match self.sink.send(&record).await {
                Ok(()) => deliver(&mut self.sink).await,
                rejected => rejected,
            };
            match sent {
                Ok(()) => self.rejections.set_in_topic(event, InTopic::Sent).await?,
                Err(SinkError::Rejected { .. }) => {
                    // Not for the dead_letter's sake, if the topic is gone: then it waits.
                    match self.sink.validate_topic(topic).await {
                        Err(err @ SinkError::Rejected { .. }) => {
                            return Err(SourceError::DeadLetterTopic(err));
                        }
                        known => known?,
                    }
                    self.rejections
                        .set_in_topic(event, InTopic::Rejected)
                        .await?;
                    self.sink.acknowledgements().ensure_usable()?;
                }
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }
}
