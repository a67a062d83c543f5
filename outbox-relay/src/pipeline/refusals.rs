//! What becomes of a record that Kafka refuses for good, by the source's policy.

use std::ops::ControlFlow;

use cli::MAX_TOPIC_NAME_CHARS;

use super::{
    error::SourceError,
    outcome::{Cause, Restart},
    shipping::{Shipping, deliver},
};
use crate::{
    config::OnRefusal,
    dead_letters::{
        aside::{MAX_PARKED_KEY_BYTES, MAX_PARKED_KEYS},
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

impl<S: Sink> Shipping<'_, S> {
    /// Sets a refused row aside, or ends with an error that says that it is in the way. Breaks if the sink can't be used any more.
    pub(super) async fn set_aside(
        &mut self,
        row: &Row<'_>,
        position: Option<Position>,
        refusal: SinkError,
    ) -> Result<ControlFlow<Restart>, SourceError> {
        let can_park = self.aside.parked_keys() < MAX_PARKED_KEYS
            && row.key.len() <= MAX_PARKED_KEY_BYTES
            && row.topic.len() <= MAX_TOPIC_NAME_CHARS;
        let reason = refusal.to_string();
        match self.config.on_refusal {
            OnRefusal::ParkKey if can_park => {
                let (topic, key) = (row.topic, row.key);
                self.aside.park(row.into(), topic, key, &reason).await?;
                self.status.update(|status| status.refused.parked += 1);
            }
            OnRefusal::DeadLetter => {
                let (topic, key) = (row.topic, row.key);
                self.aside.bury(row.into(), topic, key, reason.clone());
            }
            OnRefusal::ParkKey | OnRefusal::Halt => {
                return Err(SourceError::Refused {
                    event_id: row.event_id,
                    seq: row.seq,
                    key: row.key.chars().take(SHOWN_KEY_CHARS).collect(),
                    source: refusal,
                });
            }
        }
        let (source, event_id, seq) = (&self.config.name, row.event_id, row.seq);
        tracing::error!(%source, %event_id, seq, reason, policy = self.config.on_refusal.name(), "event set aside");
        // A row that shares its position is a copy of it, or storing it fails.
        let event_id = Some(row.event_id);
        self.pass(position.or(Some(Position { seq, event_id })));
        let event_id = row.event_id;
        let acknowledgements = self.sink.acknowledgements().clone();
        if acknowledgements.check().is_ok() {
            return Ok(ControlFlow::Continue(()));
        }
        // The broker has refused it, and the sink is of no use any more. Everything before it was
        // acknowledged, because it was sent alone.
        self.mark(acknowledgements.acknowledged()).await?;
        Ok(ControlFlow::Break(Restart {
            cause: Cause::SetAside { event_id },
            rejection: refusal,
            one_at_a_time: self.one_by_one,
        }))
    }

    /// Ships what was set aside and is to be tried again.
    pub(super) async fn look_aside(&mut self) -> Result<(), SourceError> {
        if !self.aside.needs_reload() {
            return Ok(());
        }
        self.aside.reload().await?;
        let source = &self.config.name;
        if self.aside.parked_keys() > 0 {
            let page = storage::parked_page(self.reader, source, LOOK_ROWS).await?;
            self.ship_parked(&page).await?;
            if !page.is_last() {
                self.aside.reload_soon();
            }
        }
        if let Some(topic) = &self.config.dead_letter_topic {
            let page = storage::pending_page(self.reader, source, LOOK_ROWS).await?;
            self.ship_dead_letters(&page, topic).await?;
            if !page.is_last() {
                self.aside.reload_soon();
            }
        }
        let parked_keys = self.aside.parked_keys();
        self.status
            .update(|status| status.parked_keys = parked_keys);
        Ok(())
    }

    async fn ship_parked(&mut self, page: &Page) -> Result<(), SourceError> {
        let mut refused: Vec<(&str, &str)> = Vec::new();
        for row in page.rows() {
            let row = row?;
            let (topic, key) = (row.topic, row.key);
            if refused.contains(&(topic, key)) {
                continue;
            }
            self.one_by_one = self.one_by_one.max(1);
            match self.send_row(&row).await? {
                None => self.aside.unpark((&row).into(), topic, key).await?,
                Some(refusal) => {
                    let reason = refusal.to_string();
                    self.aside.park_again((&row).into(), &reason).await?;
                    let (source, event_id) = (&self.config.name, row.event_id);
                    tracing::warn!(%source, %event_id, seq = row.seq, reason, "refused again, stays parked");
                    // The broker's refusal ends the sink; its own does not.
                    self.sink.acknowledgements().check()?;
                    refused.push((topic, key));
                }
            }
        }
        Ok(())
    }

    async fn ship_dead_letters(&mut self, page: &Page, topic: &str) -> Result<(), SourceError> {
        for row in page.rows() {
            let row = row?;
            let event = EventRef::from(&row);
            let Ok(record) = self.router.route(&row) else {
                self.aside.buried_in_topic(event, InTopic::Refused).await?;
                continue;
            };
            let record = Record { topic, ..record };
            // What goes wrong from here on is this letter's.
            deliver(&mut self.sink).await?;
            let sent = match self.sink.send(&record).await {
                Ok(()) => deliver(&mut self.sink).await,
                refused => refused,
            };
            match sent {
                Ok(()) => self.aside.buried_in_topic(event, InTopic::Sent).await?,
                Err(SinkError::Refused { .. }) => {
                    // Not for the letter's sake, if the topic is gone: then it waits.
                    match self.sink.look_up(topic).await {
                        Err(err @ SinkError::Refused { .. }) => {
                            return Err(SourceError::DeadLetterTopic(err));
                        }
                        known => known?,
                    }
                    self.aside.buried_in_topic(event, InTopic::Refused).await?;
                    self.sink.acknowledgements().check()?;
                }
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }
}
