//! One source's life: become the leader, read, ship, move the checkpoint; begin anew upon any error.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    checkpoint::CheckpointError,
    config::{KafkaConfig, SourceConfig},
    leader::{self, Candidate, Election, HEARTBEAT_INTERVAL, Leadership},
    marks::Marks,
    reader::{Page, ReadError, Reader},
    route::{BadHeaders, Router},
    sink::{InFlight, RdKafkaSink, Sink, SinkError},
    status::{Role, SharedStatus},
    window::Cursor,
};

/// How often a standby tries to become the leader.
const ELECTION_INTERVAL: Duration = Duration::from_millis(200);
/// The pause after an error; it doubles with every further one, up to the second.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Shipping without an error for so long makes the next error a first one.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// The shortest pause between two looks: fewer rows a look cost the database more than they gain.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(1);
/// The pause is this part of the time since there was work: 2 ms after 100 ms, 20 ms after a second.
const REST_PART: u32 = 50;
/// How often the checkpoint follows the acknowledgements. After a kill, what was shipped since is
/// shipped again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(50);
/// Rows between two places in a page that a checkpoint can name.
const MARK_ROWS: u64 = 500;
/// The first page; later ones grow as far as their rows allow.
const FIRST_PAGE_ROWS: usize = 1_000;
/// The size that pages aim at.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long what is in flight may take to be acknowledged after the relay was asked to end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// With fewer records in flight than this even a slow broker answers within the delivery timeout.
const MIN_IN_FLIGHT_RECORDS: usize = 64;

/// Why shipping has to begin anew.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("can't reach the database")]
    Database(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("event {event_id} can't be shipped")]
    BadRow {
        event_id: uuid::Uuid,
        source: BadHeaders,
    },
    #[error(
        "the checkpoint {checkpoint} is ahead of the database, which is at {now}: was it restored \
         from a dump? If so, run `outbox-relay reset --source {name}`, which ships every row that \
         the outbox still holds once more"
    )]
    CheckpointFromTheFuture {
        name: String,
        checkpoint: String,
        now: String,
    },
    #[error("what was in flight was not acknowledged within {FLUSH_TIMEOUT:?}")]
    FlushTimeout,
}

/// Ships `config`'s outbox to Kafka until `shutdown`.
pub(crate) async fn run(
    config: SourceConfig,
    kafka: KafkaConfig,
    status: SharedStatus,
    shutdown: CancellationToken,
) {
    let mut source = Source {
        max_in_flight: kafka.max_in_flight_records,
        router: Router::new(config.ce_source.clone(), config.content_type.clone()),
        config,
        kafka,
        status,
        shutdown,
    };
    source.run().await;
    source.status.update(|status| status.role = Role::Stopped);
}

struct Source {
    config: SourceConfig,
    kafka: KafkaConfig,
    /// Halved when the broker was too slow for what was in flight, so that a slow one is not given
    /// the same again and again, timing out every time.
    max_in_flight: usize,
    router: Router,
    status: SharedStatus,
    shutdown: CancellationToken,
}

impl Source {
    async fn run(&mut self) {
        let name = self.config.name.clone();
        let mut backoff = MIN_BACKOFF;
        while !self.shutdown.is_cancelled() {
            let started = Instant::now();
            let Err(err) = self.lead().await else { return };
            if started.elapsed() > HEALTHY_AFTER {
                backoff = MIN_BACKOFF;
                self.max_in_flight = self.kafka.max_in_flight_records;
            } else if let SourceError::Sink(SinkError::Unavailable(_)) = err {
                self.max_in_flight = (self.max_in_flight / 2).max(MIN_IN_FLIGHT_RECORDS);
            }
            let error = program::chain(&err);
            tracing::warn!(source = %name, %error, ?backoff, "shipping begins anew");
            self.status.update(|status| {
                status.role = Role::Starting;
                status.in_flight = 0;
                status.error = Some(error);
            });
            self.pause(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Waits to be the leader, then ships until the end or an error.
    async fn lead(&mut self) -> Result<(), SourceError> {
        let Some(Election {
            leadership,
            cursor,
            wait,
        }) = self.elect().await?
        else {
            return Ok(());
        };
        let epoch = leadership.epoch();
        tracing::info!(source = %self.config.name, epoch, ?wait, "leading");
        let reader =
            Reader::new(leader::connect(&self.config.database_url, "outbox-relay reader").await?)
                .await?;
        let sink = RdKafkaSink::open(&self.kafka, self.max_in_flight);
        // While the last leader's records may still arrive, this one gets ready.
        let (sink, ()) = tokio::join!(sink, self.pause(wait));
        let sink = sink?;
        self.status.update(|status| {
            status.role = Role::Leader;
            status.epoch = Some(epoch);
        });
        self.ship(leadership, &reader, cursor, sink).await
    }

    /// Stands by until this relay is the leader; none if it is asked to end before.
    async fn elect(&self) -> Result<Option<Election>, SourceError> {
        let candidate = Candidate::new(&self.config.database_url, &self.config.name).await?;
        while !self.shutdown.is_cancelled() {
            if candidate.try_lock().await? {
                return Ok(Some(candidate.lead(self.kafka.delivery_timeout).await?));
            }
            self.status.update(|status| {
                status.role = Role::Standby;
                status.error = None;
            });
            self.pause(ELECTION_INTERVAL).await;
        }
        Ok(None)
    }

    async fn ship(
        &mut self,
        leadership: Leadership,
        reader: &Reader,
        mut cursor: Cursor,
        mut sink: impl Sink,
    ) -> Result<(), SourceError> {
        let (in_flight, status) = (sink.in_flight().clone(), self.status.clone());
        let marks = Marks::new(cursor.clone());
        let ended = tokio::select! {
            result = self.pump(&leadership, reader, &mut cursor, &mut sink, &marks) => result,
            err = keep_checkpoint(&leadership, &in_flight, &marks, &status) => match err {
                SourceError::Sink(_) => Err(err),
                // The lead is lost: what is in the sink's queue must not be sent any more.
                _ => return Err(err),
            },
        };
        // Asked to end, stopped by a row, or let down by the sink. What is on its way gets the time
        // to arrive, and what did is noted, so that whoever goes on sends it no second time.
        match tokio::time::timeout(FLUSH_TIMEOUT, in_flight.wait_until_empty()).await {
            Ok(Ok(())) => leadership.resign(&cursor).await?,
            unfinished => {
                let (reached, _) = marks.reached(in_flight.acknowledged());
                leadership.advance(&reached).await?;
                unfinished.map_err(|_| SourceError::FlushTimeout)??;
            }
        }
        status.update(|status| status.in_flight = 0);
        ended?;
        tracing::info!(source = %self.config.name, shipped = in_flight.sent(), "ended cleanly");
        Ok(())
    }

    /// Reads window after window and hands the rows to the sink, until `shutdown`.
    async fn pump(
        &mut self,
        leadership: &Leadership,
        reader: &Reader,
        cursor: &mut Cursor,
        sink: &mut impl Sink,
        marks: &Marks,
    ) -> Result<(), SourceError> {
        let mut page_rows = FIRST_PAGE_ROWS.min(self.config.max_page_rows);
        let mut last_work = Instant::now();
        while !self.shutdown.is_cancelled() {
            if cursor.window().is_none() {
                let now = reader.snapshot().await?;
                self.refuse_the_future(cursor, &now)?;
                if now == *cursor.seen() {
                    self.rest(last_work).await;
                    continue;
                }
                cursor.open(now);
            }
            let page = reader.page(cursor, page_rows).await?;
            let rows = page.rows().len();
            if !self.send(&page, leadership, cursor, sink, marks).await? {
                return Ok(());
            }
            page_rows = next_page_rows(page_rows, rows, page.bytes(), self.config.max_page_rows);
            if rows > 0 {
                last_work = Instant::now();
            }
            if page.is_last() {
                cursor.close();
                marks.add(sink.in_flight().sent(), cursor);
                self.rest(last_work).await;
            }
        }
        Ok(())
    }

    /// Sends a page; false if it was asked to end in the middle of it.
    async fn send(
        &mut self,
        page: &Page,
        leadership: &Leadership,
        cursor: &mut Cursor,
        sink: &mut impl Sink,
        marks: &Marks,
    ) -> Result<bool, SourceError> {
        for row in page.rows() {
            if self.shutdown.is_cancelled() {
                return Ok(false);
            }
            let row = row?;
            let event_id = row.event_id;
            let record = self.router.route(&row);
            let record = record.map_err(|source| SourceError::BadRow { event_id, source })?;
            leadership.wait_for_lease().await;
            sink.send(&record).await?;
            cursor.advance(row.seq);
            let sent = sink.in_flight().sent();
            if sent.is_multiple_of(MARK_ROWS) {
                marks.add(sent, cursor);
            }
        }
        marks.add(sink.in_flight().sent(), cursor);
        Ok(true)
    }

    /// Pauses before the next look at the outbox: for a part of the time since there was work, so
    /// that a lively outbox is looked at often and an idle one rarely.
    async fn rest(&self, last_work: Instant) {
        let length = last_work.elapsed() / REST_PART;
        self.pause(length.clamp(MIN_POLL_INTERVAL, self.config.max_poll_interval))
            .await;
    }

    fn refuse_the_future(
        &self,
        cursor: &Cursor,
        now: &crate::window::Snapshot,
    ) -> Result<(), SourceError> {
        if !cursor.seen().lies_in_the_future_of(now) {
            return Ok(());
        }
        Err(SourceError::CheckpointFromTheFuture {
            name: self.config.name.clone(),
            checkpoint: cursor.seen().to_string(),
            now: now.to_string(),
        })
    }

    async fn pause(&self, length: Duration) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
    }
}

/// Moves the checkpoint after the acknowledgements, and shows that the leader is alive. Ends only
/// with the reason why there is nothing more to be done.
async fn keep_checkpoint(
    leadership: &Leadership,
    in_flight: &InFlight,
    marks: &Marks,
    status: &SharedStatus,
) -> SourceError {
    let mut reached = None;
    let mut last_write = Instant::now();
    let mut last_acknowledged = 0;
    loop {
        tokio::select! {
            err = in_flight.failed() => return err.into(),
            () = tokio::time::sleep(CHECKPOINT_INTERVAL) => {}
        }
        let acknowledged = in_flight.acknowledged();
        let (cursor, count) = marks.reached(acknowledged);
        let moved = reached.replace(count) != Some(count);
        if moved || last_write.elapsed() >= HEARTBEAT_INTERVAL {
            if let Err(err) = leadership.advance(&cursor).await {
                return err.into();
            }
            last_write = Instant::now();
            status.update(|status| {
                status.shipped += acknowledged - last_acknowledged;
                status.in_flight = in_flight.sent().saturating_sub(acknowledged);
                status.error = None;
            });
            last_acknowledged = acknowledged;
        }
    }
}

/// As many rows as made [`PAGE_BYTES`] on the last page, but at most twice as many as were asked for
/// then: rows can suddenly be much larger.
fn next_page_rows(asked: usize, rows: usize, bytes: usize, max: usize) -> usize {
    if rows == 0 {
        return asked;
    }
    let fitting = rows.saturating_mul(PAGE_BYTES) / bytes.max(1);
    fitting.clamp(1, asked.saturating_mul(2).min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_the_size_of_rows() {
        assert_eq!(next_page_rows(1_000, 1_000, 1_000 * 400, 20_000), 2_000);
        assert_eq!(
            next_page_rows(20_000, 20_000, 20_000 * 4_096, 20_000),
            1_024
        );
        assert_eq!(next_page_rows(1_000, 1, 64 << 20, 20_000), 1);
        assert_eq!(next_page_rows(500, 0, 0, 20_000), 500);
    }
}
