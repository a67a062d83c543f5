//! Reads rows, sends records, and stores the checkpoint of the acknowledged rows.

use std::{
    convert::Infallible,
    ops::ControlFlow,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    address_monitor::run_address_monitor,
    checkpointer::{ProgressReporter, run_checkpointer},
    circuit_breaker::CircuitBreaker,
    error::SourceError,
    failures::Failures,
    outcome::{Cause, Outcome, Restart},
    page_rows::{first_page_rows, next_page_rows},
    poll_schedule::PollSchedule,
    record_builder::RecordBuilder,
    recovery::Recovery,
    truncation::run_truncation,
};
use crate::{
    clock::Clock,
    config::SourceConfig,
    dead_letters::rejections::Rejections,
    hints,
    kafka::{Acknowledgements, RejectionCause, Sampling, Sink, SinkError},
    ops::status::SharedStatus,
    postgres::{
        leader::Leadership,
        reader::{Page, ReadError, Reader, Row},
        snapshot::Snapshot,
        window::{Cursor, Position},
    },
};

/// The interval of verifications. They find rows that were replicated or restored from another cluster.
const VERIFICATION_INTERVAL: Duration = Duration::from_secs(5);
/// Rows between two positions of a page that a checkpoint can store.
const CHECKPOINT_ROWS: u64 = 500;
/// Rows between two checks for a shutdown.
const SHUTDOWN_CHECK_ROWS: usize = 100;
/// After publishing without an error for this long, the backoff and the bound of records in flight are reset.
pub(super) const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// The longest wait for acknowledgements during the drain.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes the rows of one source while this relay leads it.
pub(super) struct Publisher<'a, S> {
    pub(super) config: &'a SourceConfig,
    /// The configured limit on records in flight. The sink may have a lower one until [`HEALTHY_AFTER`].
    pub(super) configured_max_in_flight: usize,
    pub(super) status: &'a SharedStatus,
    pub(super) shutdown: &'a CancellationToken,
    pub(super) leadership: &'a Leadership,
    pub(super) reader: &'a Reader,
    pub(super) sink: S,
    pub(super) record_builder: RecordBuilder,
    /// The position behind the last row that was sent, parked or dead-lettered.
    pub(super) cursor: Cursor,
    pub(super) rejections: Rejections<'a>,
    /// Rows still to be sent one by one, because one of them was rejected when they were sent together.
    pub(super) one_by_one_rows: u64,
    pub(super) clock: &'a Clock,
    pub(super) failures: &'a Failures,
    /// Parked events are not retried before.
    pub(super) next_retry_at: &'a Mutex<Instant>,
    pub(super) circuit_breaker: &'a Mutex<CircuitBreaker>,
    /// False while no rejection is counted. Then nothing is locked.
    pub(super) is_counting_rejections: bool,
    pub(super) has_warned_of_repeated_seq: bool,
}

impl<S: Sink> Publisher<'_, S> {
    /// Publishes until shutdown or an error. In both cases it waits for the records in flight and stores the checkpoint, so
    /// that the next leader does not send them again.
    pub(super) async fn run(mut self) -> Result<Outcome, SourceError> {
        let leadership = self.leadership;
        let acknowledgements = self.sink.acknowledgements().clone();
        let reporter = ProgressReporter::new(self.status, &acknowledgements);
        let mut checkpointer = pin!(run_checkpointer(leadership, &acknowledgements, &reporter));
        acknowledgements.measure(Arc::clone(self.status.commit_to_ack()));
        let max_in_flight = self.configured_max_in_flight;
        let (config, status) = (self.config, self.status);
        let ended = tokio::select! {
            result = self.publish_and_retry() => result,
            never = run_truncation(config, leadership, status) => match never {},
            err = run_address_monitor(config, leadership, status) => Err(err),
            never = restore_max_in_flight(&acknowledgements, max_in_flight) => match never {},
            err = &mut checkpointer => return self.store_acknowledged(&reporter, Err(err)).await,
        };
        let flushed = tokio::select! {
            flushed = timeout(FLUSH_TIMEOUT, flush_and_wait(&mut self.sink)) => flushed,
            err = &mut checkpointer => return self.store_acknowledged(&reporter, Err(err)).await,
        };
        let flushed = match flushed {
            // The cursor may have passed rows that are parked or dead-lettered in memory only.
            Ok(Ok(())) => self.store_rejections().await,
            Ok(Err(err)) => Err(SourceError::from(err)),
            Err(_) => Err(SourceError::FlushTimeout(FLUSH_TIMEOUT)),
        };
        if let Err(err) = flushed {
            // The error that ended publishing, if any, is the root cause.
            let ended = match ended {
                Ok(Outcome::Shutdown) => Err(err),
                ended => ended,
            };
            return self.store_acknowledged(&reporter, ended).await;
        }
        leadership.resign(&self.cursor).await?;
        reporter.report_progress();
        if let Ok(Outcome::Shutdown) = ended {
            let published = acknowledgements.sent();
            tracing::info!(source = %self.config.name, published, "shut down");
        }
        ended
    }

    /// Stores the acknowledged position as checkpoint, unless a write to the relay's tables has just failed. Turns the
    /// rejection of an unknown record into a restart that sends the records in flight one by one.
    async fn store_acknowledged(
        &self,
        reporter: &ProgressReporter<'_>,
        ended: Result<Outcome, SourceError>,
    ) -> Result<Outcome, SourceError> {
        let acknowledgements = self.sink.acknowledgements();
        reporter.report_progress();
        let (cursor, count) = acknowledgements.acknowledged_cursor();
        let stores_checkpoint =
            (ended.as_ref()).map_or_else(|err| Recovery::from(err).stores_checkpoint, |_| true);
        if stores_checkpoint && let Err(err) = self.leadership.advance(&cursor).await {
            return Err(match ended {
                // The rows to send one by one start at the stored checkpoint, which is unknown now.
                Ok(_) | Err(SourceError::Sink(SinkError::Rejected { .. })) => err.into(),
                // The error that ended publishing is the root cause.
                Err(root) => root,
            });
        }
        match ended {
            Err(SourceError::Sink(rejection @ SinkError::Rejected { .. })) => {
                Ok(Outcome::Restart(Restart {
                    cause: Cause::OneOfMany,
                    rejection,
                    one_by_one_rows: acknowledgements.sent() - count,
                }))
            }
            ended => ended,
        }
    }

    /// Reads window after window and gives the rows to the sink, until shutdown.
    pub(super) async fn publish_rows(&mut self) -> Result<Outcome, SourceError> {
        let mut page_rows = first_page_rows(self.one_by_one_rows).min(self.config.max_page_rows);
        let mut schedule = PollSchedule::new(self.config.max_poll_interval, Instant::now());
        // The reader was verified before publishing began.
        let mut verified_at = Instant::now();
        let mut read_ahead = None;
        while !self.shutdown.is_cancelled() {
            self.retry_rejected().await?;
            if verified_at.elapsed() > VERIFICATION_INTERVAL {
                verify_reader(self.reader, self.leadership, self.config, self.clock).await?;
                self.status.set_clock_skew(self.clock.database_ahead_s());
                verified_at = Instant::now();
                // An operator may have moved dead letters to the parked events.
                if self.status.get().parked_keys != self.rejections.parked_keys() {
                    self.rejections.reload_soon();
                }
            }
            let page = match read_ahead.take() {
                Some(page) => Some(page),
                None => match self.cursor.window() {
                    Some(_) => {
                        Some(read_page(self.reader, self.status, &self.cursor, page_rows).await?)
                    }
                    None => {
                        schedule.start_poll(Instant::now());
                        self.poll(page_rows).await?
                    }
                },
            };
            // Not earlier: only a page proves that the outbox can be read.
            self.status.set_leader();
            let Some(page) = page else {
                self.sink.run_maintenance().await?;
                self.pause_until(schedule.next_poll_at(Instant::now()))
                    .await?;
                continue;
            };
            if let Some(seq) = page.repeated_seq() {
                self.warn_of_repeated_seq(seq);
            }
            let (rows, max) = (page.rows().len(), self.config.max_page_rows);
            page_rows = next_page_rows(page_rows, rows, page.bytes(), max);
            read_ahead = match self.send_page(&page, page_rows).await? {
                ControlFlow::Continue(next) => next,
                ControlFlow::Break(restart) => return Ok(Outcome::Restart(restart)),
            };
            self.status.end_halt();
            if rows > 0 {
                schedule.record_rows(Instant::now());
            }
            if page.is_last() && !self.shutdown.is_cancelled() {
                self.cursor.close();
                let acknowledgements = self.sink.acknowledgements();
                acknowledgements.register_cursor(acknowledgements.sent(), &self.cursor);
                self.pause_until(schedule.next_poll_at(Instant::now()))
                    .await?;
            }
        }
        Ok(Outcome::Shutdown)
    }

    /// Reads the first page of the next window and opens the window. Returns `None` if no transaction has completed since the last
    /// one.
    async fn poll(&mut self, page_rows: usize) -> Result<Option<Page>, SourceError> {
        let started = Instant::now();
        let (now, page) = self
            .reader
            .read_next_window(&self.cursor, page_rows)
            .await?;
        self.ensure_checkpoint_not_ahead(&now)?;
        if now == *self.cursor.start_snapshot() && page.rows().len() == 0 {
            if self.sink.acknowledgements().is_empty() {
                self.status.mark_recovered();
            }
            return Ok(None);
        }
        self.status.page_read().observe(started.elapsed(), 1);
        self.cursor.open(now);
        Ok(Some(page))
    }

    /// Sends a page and reads the next page of the window concurrently. Returns `None` if there is no next page or during
    /// shutdown.
    async fn send_page(
        &mut self,
        page: &Page,
        next_rows: usize,
    ) -> Result<ControlFlow<Restart, Option<Page>>, SourceError> {
        let (reader, status) = (self.reader, self.status);
        let ahead = match page.rows().len().checked_sub(1) {
            Some(last) if !page.is_last() => {
                let mut cursor = self.cursor.clone();
                if let Some(position) = page.position_after(last) {
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
            // Takes a lock.
            if index.is_multiple_of(SHUTDOWN_CHECK_ROWS) && self.shutdown.is_cancelled() {
                break;
            }
            let row = row?;
            let position = page.position_after(index);
            if self.rejections.is_parked(row.topic, row.key) {
                self.rejections.park_behind((&row).into());
                self.advance(position);
                if self.one_by_one_rows > 0 {
                    self.store_rejections_and_register_cursor(self.sink.acknowledgements().sent())
                        .await?;
                }
                continue;
            }
            if self.rejections.must_store_before(row.topic, row.key) {
                self.store_rejections_and_register_cursor(self.sink.acknowledgements().sent())
                    .await?;
            }
            let is_alone = self.one_by_one_rows > 0;
            let sample = row.created_at_us.zip(sampling.weight(index));
            if let Some((created_at_us, weight)) = sample {
                acknowledgements.track_latency(created_at_us, weight);
            }
            let rejection = self.send_row(&row).await?;
            if rejection.is_some() && sample.is_some() {
                acknowledgements.untrack_latency();
            }
            let is_sent = rejection.is_none();
            match rejection {
                None => {
                    if self.is_counting_rejections {
                        let sent = acknowledgements.sent();
                        self.circuit_breaker.lock().record_sent(row.topic, sent);
                    }
                    self.advance(position);
                }
                Some(rejection) => {
                    let restart = self.handle_rejection(&row, position, rejection).await?;
                    if restart.is_break() {
                        return Ok(restart);
                    }
                }
            }
            let sent = acknowledgements.sent();
            // After each row sent alone, so that a restart begins with the rejected row.
            if is_alone || is_sent && sent.is_multiple_of(CHECKPOINT_ROWS) {
                self.store_rejections_and_register_cursor(sent).await?;
            }
        }
        self.sink.flush().await?;
        self.store_rejections_and_register_cursor(self.sink.acknowledgements().sent())
            .await?;
        self.sink.run_maintenance().await?;
        Ok(ControlFlow::Continue(()))
    }

    /// Moves the cursor behind a row that was sent, parked or dead-lettered. Rows that share a position have one only behind the
    /// last of them.
    pub(super) fn advance(&mut self, position: Option<Position>) {
        if let Some(position) = position {
            self.cursor.advance(position);
        }
    }

    /// Stores what was parked or dead-lettered. Then lets the checkpoint move to the cursor, once the first `sent` records
    /// are acknowledged.
    pub(super) async fn store_rejections_and_register_cursor(
        &mut self,
        sent: u64,
    ) -> Result<(), SourceError> {
        // First: every row before the cursor must be sent, parked or dead-lettered.
        self.store_rejections().await?;
        self.sink
            .acknowledgements()
            .register_cursor(sent, &self.cursor);
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

    /// Sends a row. Returns the rejection if it is certainly this row's. An error may be about any record in flight.
    pub(super) async fn send_row(
        &mut self,
        row: &Row<'_>,
    ) -> Result<Option<SinkError>, SourceError> {
        let is_alone = self.one_by_one_rows > 0;
        if is_alone {
            self.one_by_one_rows -= 1;
            // Any rejection from here on is this row's.
            flush_and_wait(&mut self.sink).await?;
        }
        let mut has_own_timestamp = false;
        let mut sent = match self.record_builder.build(row) {
            Ok(record) => {
                has_own_timestamp = record.timestamp_ms.is_some();
                self.sink.send(&record).await
            }
            Err(err) => Err(SinkError::rejected(row.topic, err)),
        };
        if is_alone && sent.is_ok() {
            sent = flush_and_wait(&mut self.sink).await;
        }
        match sent {
            Ok(()) => Ok(None),
            // A usable sink has rejected the row itself. The failure of an unusable one may be another record's.
            Err(rejection @ SinkError::Rejected { .. })
                if is_alone || self.sink.acknowledgements().ensure_usable().is_ok() =>
            {
                Ok(Some(match rejection.cause() {
                    RejectionCause::Clock if has_own_timestamp => {
                        rejection.with_cause(RejectionCause::Record)
                    }
                    _ => rejection,
                }))
            }
            Err(err) => Err(err.into()),
        }
    }

    /// Pauses until the time of the next poll.
    pub(super) async fn pause_until(&self, time: Instant) -> Result<(), SourceError> {
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(()),
            () = tokio::time::sleep_until(time) => Ok(()),
            err = self.sink.acknowledgements().failed() => Err(err.into()),
        }
    }

    /// Warns once. All rows are published, but in the order of their seq within a window.
    fn warn_of_repeated_seq(&mut self, seq: i64) {
        if !std::mem::replace(&mut self.has_warned_of_repeated_seq, true) {
            tracing::warn!(
                source = %self.config.name,
                seq,
                hint = "Set the sequence to the highest seq of the table. `outbox-relay check` prints the statement.",
                "several rows share a seq, events of a key may be published out of order"
            );
        }
    }

    fn ensure_checkpoint_not_ahead(&self, now: &Snapshot) -> Result<(), SourceError> {
        if !self.cursor.start_snapshot().is_ahead_of(now) {
            return Ok(());
        }
        Err(SourceError::CheckpointFromTheFuture {
            name: self.config.name.clone(),
            checkpoint: self.cursor.start_snapshot().to_string(),
        })
    }
}

/// Fails unless the reader is connected to the leader's database, and all of its rows are this cluster's.
pub(super) async fn verify_reader(
    reader: &Reader,
    leadership: &Leadership,
    config: &SourceConfig,
    clock: &Clock,
) -> Result<(), SourceError> {
    let before = SystemTime::now();
    let verification = reader.verify(leadership.identity()).await?;
    clock.record_database_time(verification.database_ms, before, SystemTime::now());
    verification.ensure_same_database()?;
    match verification.future_row {
        None => Ok(()),
        Some(row) => Err(SourceError::ForeignRows {
            table: config.mapping.table().to_owned(),
            row,
            hint: hints::for_foreign_rows(&config.name, &config.mapping),
        }),
    }
}

/// Reads a page and records the duration.
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

/// Flushes the sink and waits until everything is acknowledged.
pub(super) async fn flush_and_wait(sink: &mut impl Sink) -> Result<(), SinkError> {
    sink.flush().await?;
    sink.acknowledgements().wait_until_empty().await
}

/// Restores the bound that earlier errors have halved, after [`HEALTHY_AFTER`] without an error.
async fn restore_max_in_flight(
    acknowledgements: &Acknowledgements,
    max_in_flight: usize,
) -> Infallible {
    tokio::time::sleep(HEALTHY_AFTER).await;
    acknowledgements.raise_capacity(max_in_flight);
    std::future::pending().await
}
