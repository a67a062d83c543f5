//! Read, send, and move the checkpoint after the acknowledgements.

use std::{convert::Infallible, ops::ControlFlow, pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    checkpointer::{Shown, keep_checkpoint},
    error::SourceError,
    outcome::{Cause, Outcome, Restart},
    page_rows::{first_page_rows, next_page_rows},
    recovery::Recovery,
};
use super::{route::Router, truncation::keep_truncating};
use crate::{
    config::SourceConfig,
    dead_letters::rejections::Rejections,
    hints,
    kafka::{Acknowledgements, Sampling, Sink, SinkError},
    ops::status::SharedStatus,
    postgres::{
        leader::Leadership,
        reader::{Page, ReadError, Reader, Row},
        window::{Cursor, Position, Snapshot},
    },
};

/// The shortest pause between two looks of which the first found nothing.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(1);
/// The pause is this part of the time since there was work: 2 ms after 100 ms, 20 ms after a second.
const REST_PART: u32 = 50;
/// How often a leader looks for rows that were replicated or restored from another cluster.
const FOREIGN_ROWS_INTERVAL: Duration = Duration::from_secs(5);
/// Rows between two places in a page that a checkpoint can name.
const MARK_ROWS: u64 = 500;
/// Publishing without an error for so long makes the next error a first one.
pub(super) const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// How long what is in flight may take to be acknowledged after the relay was asked to end.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// A source whose rows are on their way.
pub(super) struct Publisher<'a, S> {
    pub(super) config: &'a SourceConfig,
    /// Records that may be in flight after a while without an error.
    pub(super) max_in_flight: usize,
    pub(super) status: &'a SharedStatus,
    pub(super) shutdown: &'a CancellationToken,
    pub(super) reader: &'a Reader,
    pub(super) sink: S,
    pub(super) router: Router,
    /// How far the sink was given rows.
    pub(super) cursor: Cursor,
    pub(super) rejections: Rejections<'a>,
    /// So many rows are sent one by one: one of them was rejected when they were sent together.
    pub(super) one_by_one: u64,
    pub(super) has_warned_of_repeated_seq: bool,
}

impl<S: Sink> Publisher<'_, S> {
    /// Publishes until the end or an error. Either way, what is on its way gets the time to arrive, and
    /// what did is noted, so that whoever goes on sends it no second time.
    pub(super) async fn run(mut self, leadership: &Leadership) -> Result<Outcome, SourceError> {
        let acknowledgements = self.sink.acknowledgements().clone();
        let shown = Shown::new(self.status, &acknowledgements);
        let mut keeping = pin!(keep_checkpoint(leadership, &acknowledgements, &shown));
        acknowledgements.measure(Arc::clone(self.status.commit_to_ack()));
        let max_in_flight = self.max_in_flight;
        let (config, status) = (self.config, self.status);
        let ended = tokio::select! {
            result = self.pump() => result,
            never = keep_truncating(config, leadership, status) => match never {},
            never = make_room(&acknowledgements, max_in_flight) => match never {},
            err = &mut keeping => return self.note(leadership, &shown, Err(err)).await,
        };
        let flushed = tokio::select! {
            flushed = timeout(FLUSH_TIMEOUT, deliver(&mut self.sink)) => flushed,
            err = &mut keeping => return self.note(leadership, &shown, Err(err)).await,
        };
        let flushed = match flushed {
            // The cursor may have passed rows that are set aside in memory only.
            Ok(Ok(())) => self.store_rejections().await,
            Ok(Err(err)) => Err(SourceError::from(err)),
            Err(_) => Err(SourceError::FlushTimeout(FLUSH_TIMEOUT)),
        };
        if let Err(err) = flushed {
            // What ended the pump, if anything, is the better reason.
            let ended = match ended {
                Ok(Outcome::Shutdown) => Err(err),
                ended => ended,
            };
            return self.note(leadership, &shown, ended).await;
        }
        leadership.resign(&self.cursor).await?;
        shown.update();
        if let Ok(Outcome::Shutdown) = ended {
            let published = acknowledgements.sent();
            tracing::info!(source = %self.config.name, published, "ended cleanly");
        }
        ended
    }

    /// Notes what was acknowledged before this end, if this relay still leads.
    async fn note(
        &self,
        leadership: &Leadership,
        shown: &Shown<'_>,
        ended: Result<Outcome, SourceError>,
    ) -> Result<Outcome, SourceError> {
        let acknowledgements = self.sink.acknowledgements();
        shown.update();
        let (reached, count) = acknowledgements.reached();
        let leads =
            (ended.as_ref()).map_or_else(|err| Recovery::from(err).keeps_leadership, |_| true);
        if leads {
            leadership.advance(&reached).await?;
        }
        match ended {
            Err(SourceError::Sink(rejection @ SinkError::Rejected { .. })) => {
                Ok(Outcome::Restart(Restart {
                    cause: Cause::OneOfMany,
                    rejection,
                    one_at_a_time: acknowledgements.sent() - count,
                }))
            }
            ended => ended,
        }
    }

    /// Reads window after window and hands the rows to the sink, until `shutdown`.
    async fn pump(&mut self) -> Result<Outcome, SourceError> {
        let mut page_rows = first_page_rows(self.one_by_one).min(self.config.max_page_rows);
        let mut last_work = Instant::now();
        // The source was looked through for foreign rows when this began.
        let mut foreign_rows_at = Instant::now();
        let mut read_ahead = None;
        while !self.shutdown.is_cancelled() {
            self.retry_parked().await?;
            if foreign_rows_at.elapsed() > FOREIGN_ROWS_INTERVAL {
                ensure_no_foreign_rows(self.reader, self.config).await?;
                foreign_rows_at = Instant::now();
            }
            let page = match read_ahead.take() {
                Some(page) => page,
                None => {
                    if self.cursor.window().is_none() && !self.open_window().await? {
                        self.status.leads();
                        self.sink.maintain().await?;
                        self.rest(last_work).await?;
                        continue;
                    }
                    read_page(self.reader, self.status, &self.cursor, page_rows).await?
                }
            };
            // Not before: until now nothing has shown that the outbox can be read.
            self.status.leads();
            if let Some(seq) = page.repeated_seq() {
                self.warn_of_repeated_seq(seq);
            }
            let (rows, max) = (page.rows().len(), self.config.max_page_rows);
            page_rows = next_page_rows(page_rows, rows, page.bytes(), max);
            read_ahead = match self.send_page(&page, page_rows).await? {
                ControlFlow::Continue(next) => next,
                ControlFlow::Break(restart) => return Ok(Outcome::Restart(restart)),
            };
            if rows > 0 {
                last_work = Instant::now();
            }
            if page.is_last() && !self.shutdown.is_cancelled() {
                self.cursor.close();
                let acknowledgements = self.sink.acknowledgements();
                acknowledgements.mark(acknowledgements.sent(), &self.cursor);
                // What has come while this was sent has waited long enough.
                if rows == 0 {
                    self.rest(last_work).await?;
                }
            }
        }
        Ok(Outcome::Shutdown)
    }

    /// Opens the window that reaches up to now; false if nothing has happened since the last one.
    async fn open_window(&mut self) -> Result<bool, SourceError> {
        let now = self.reader.take_snapshot().await?;
        self.reject_the_future(&now)?;
        if now == *self.cursor.seen() {
            if self.sink.acknowledgements().is_empty() {
                self.status.recovered();
            }
            return Ok(false);
        }
        self.cursor.open(now);
        Ok(true)
    }

    /// Sends a page, and reads the next one of the window meanwhile. None if there is no next one,
    /// or if it is asked to end.
    async fn send_page(
        &mut self,
        page: &Page,
        next_rows: usize,
    ) -> Result<ControlFlow<Restart, Option<Page>>, SourceError> {
        let (reader, status) = (self.reader, self.status);
        let ahead = match page.rows().len().checked_sub(1) {
            Some(last) if !page.is_last() => {
                let mut cursor = self.cursor.clone();
                if let Some(position) = page.position_after(last)? {
                    cursor.advance(position);
                }
                Some(async move { read_page(reader, status, &cursor, next_rows).await })
            }
            _ => None,
        };
        let sending = self.send_rows(page);
        match ahead {
            None => Ok(sending.await?.map_continue(|()| None)),
            Some(ahead) => match tokio::join!(ahead, sending) {
                (ahead, Ok(ControlFlow::Continue(()))) => Ok(ControlFlow::Continue(Some(ahead?))),
                (_, sent) => Ok(sent?.map_continue(|()| None)),
            },
        }
    }

    async fn send_rows(&mut self, page: &Page) -> Result<ControlFlow<Restart>, SourceError> {
        let acknowledgements = self.sink.acknowledgements().clone();
        let sampling = Sampling::of(page.rows().len());
        for (index, row) in page.rows().enumerate() {
            if self.shutdown.is_cancelled() {
                break;
            }
            let row = row?;
            let position = page.position_after(index)?;
            if self.rejections.is_parked(row.topic, row.key) {
                self.rejections.park_behind((&row).into());
                self.pass(position);
                if self.one_by_one > 0 {
                    self.mark(self.sink.acknowledgements().sent()).await?;
                }
                continue;
            }
            if self.rejections.must_store_before(row.topic, row.key) {
                self.mark(self.sink.acknowledgements().sent()).await?;
            }
            let is_alone = self.one_by_one > 0;
            let sample = row.created_at_us.zip(sampling.weight(index));
            if let Some((created_at_us, weight)) = sample {
                acknowledgements.expect(created_at_us, weight);
            }
            let rejection = self.send_row(&row).await?;
            if rejection.is_some() && sample.is_some() {
                acknowledgements.forget_expected();
            }
            let is_taken = rejection.is_none();
            match rejection {
                None => self.pass(position),
                Some(rejection) => {
                    let restart = self.dead_lettered(&row, position, rejection).await?;
                    if restart.is_break() {
                        return Ok(restart);
                    }
                }
            }
            let sent = acknowledgements.sent();
            // Alone, so that whoever goes on begins with the row that is rejected.
            if is_alone || is_taken && sent.is_multiple_of(MARK_ROWS) {
                self.mark(sent).await?;
            }
        }
        self.sink.flush().await?;
        self.mark(self.sink.acknowledgements().sent()).await?;
        self.sink.maintain().await?;
        Ok(ControlFlow::Continue(()))
    }

    /// Notes that the sink was given a row, or that it is set aside; behind one that shares its position there is no place.
    pub(super) fn pass(&mut self, position: Option<Position>) {
        if let Some(position) = position {
            self.cursor.advance(position);
        }
    }

    /// Makes this a place that a checkpoint can name, when the first `sent` records are acknowledged.
    pub(super) async fn mark(&mut self, sent: u64) -> Result<(), SourceError> {
        // A row that the cursor has passed was sent or is set aside.
        self.store_rejections().await?;
        self.sink.acknowledgements().mark(sent, &self.cursor);
        Ok(())
    }

    async fn store_rejections(&mut self) -> Result<(), SourceError> {
        let dead_letters = self.rejections.store().await?;
        if dead_letters > 0 {
            self.status
                .update(|status| status.rejected.dead_lettered += dead_letters);
        }
        Ok(())
    }

    /// Sends a row; returns why, if it is this one that will not be taken. An error can be that of any
    /// row that was on its way.
    pub(super) async fn send_row(
        &mut self,
        row: &Row<'_>,
    ) -> Result<Option<SinkError>, SourceError> {
        let is_alone = self.one_by_one > 0;
        if is_alone {
            self.one_by_one -= 1;
            // What goes wrong from here on is this row's.
            deliver(&mut self.sink).await?;
        }
        let mut sent = match self.router.route(row) {
            Ok(record) => self.sink.send(&record).await,
            Err(err) => Err(SinkError::rejected(row.topic, err)),
        };
        if is_alone && sent.is_ok() {
            sent = deliver(&mut self.sink).await;
        }
        match sent {
            Ok(()) => Ok(None),
            // A sink of use has rejected the row itself; one that is of no use any more may have told
            // of another one.
            Err(rejection @ SinkError::Rejected { .. })
                if is_alone || self.sink.acknowledgements().check().is_ok() =>
            {
                Ok(Some(rejection))
            }
            Err(err) => Err(err.into()),
        }
    }

    /// Pauses before the next look at the outbox: for a part of the time since there was work, so
    /// that a lively outbox is looked at often and an idle one rarely.
    async fn rest(&self, last_work: Instant) -> Result<(), SourceError> {
        let length = last_work.elapsed() / REST_PART;
        let length = length.clamp(MIN_POLL_INTERVAL, self.config.max_poll_interval);
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(()),
            () = tokio::time::sleep(length) => Ok(()),
            err = self.sink.acknowledgements().failed() => Err(err.into()),
        }
    }

    /// All rows are published, but a window has them in the order of their numbers.
    fn warn_of_repeated_seq(&mut self, seq: i64) {
        if !std::mem::replace(&mut self.has_warned_of_repeated_seq, true) {
            tracing::warn!(
                source = %self.config.name,
                seq,
                hint = "set the sequence to the highest seq of the table: `outbox-relay check` prints the statement",
                "several rows have the same seq, so that events of a key may be published out of order"
            );
        }
    }

    fn reject_the_future(&self, now: &Snapshot) -> Result<(), SourceError> {
        if !self.cursor.seen().is_ahead_of(now) {
            return Ok(());
        }
        Err(SourceError::CheckpointFromTheFuture {
            name: self.config.name.clone(),
            checkpoint: self.cursor.seen().to_string(),
        })
    }
}

/// Fails if the source has rows whose transactions are still to come in this cluster.
pub(super) async fn ensure_no_foreign_rows(
    reader: &Reader,
    config: &SourceConfig,
) -> Result<(), SourceError> {
    match reader.find_future_row().await? {
        None => Ok(()),
        Some(row) => Err(SourceError::ForeignRows {
            table: config.mapping.table().to_owned(),
            row,
            hint: hints::for_foreign_rows(&config.name, &config.mapping),
        }),
    }
}

/// Reads a page, and counts how long that takes.
async fn read_page(
    reader: &Reader,
    status: &SharedStatus,
    cursor: &Cursor,
    rows: usize,
) -> Result<Page, ReadError> {
    let started = Instant::now();
    let page = reader.read_page(cursor, rows).await?;
    status.page_read().observe(started.elapsed(), 1);
    Ok(page)
}

/// Sends what is still in the sink, and waits until everything is acknowledged.
pub(super) async fn deliver(sink: &mut impl Sink) -> Result<(), SinkError> {
    sink.flush().await?;
    sink.acknowledgements().wait_until_empty().await
}

/// Takes back what earlier errors have cut off, when there was none for a while.
async fn make_room(acknowledgements: &Acknowledgements, max_in_flight: usize) -> Infallible {
    tokio::time::sleep(HEALTHY_AFTER).await;
    acknowledgements.allow(max_in_flight);
    std::future::pending().await
}
