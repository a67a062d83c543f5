use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use chrono::DateTime;
use hdrhistogram::Histogram;
use lab::{due_us, unix_us};
use rdkafka::{
    Message as _,
    consumer::BaseConsumer,
    message::{BorrowedMessage, Headers as _},
};

use super::histogram;

const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// After the last commit, how long its record may take.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);
/// While nobody knows yet how many records will come.
const UNKNOWN: u64 = u64::MAX;

/// Consumes on a thread of its own, as any consumer with librdkafka does.
pub(super) struct Consumer {
    thread: JoinHandle<Result<Received>>,
    wanted: Arc<AtomicU64>,
}

/// What came, and how long it took in microseconds. Only what was due while measuring is in the
/// histograms.
pub(super) struct Received {
    records: u64,
    pub(super) since_created: Histogram<u64>,
    pub(super) since_due: Histogram<u64>,
}

impl Consumer {
    /// What is due before `measured_from_us` is warm-up.
    pub(super) fn start(consumer: BaseConsumer, measured_from_us: u64) -> Self {
        let wanted = Arc::new(AtomicU64::new(UNKNOWN));
        let thread = {
            let wanted = Arc::clone(&wanted);
            thread::spawn(move || consume(&consumer, measured_from_us, &wanted))
        };
        Self { thread, wanted }
    }

    /// Waits until as many records came as were committed, and no more.
    pub(super) async fn finish(self, committed: u64) -> Result<Received> {
        self.wanted.store(committed, Ordering::Relaxed);
        let joining = tokio::task::spawn_blocking(move || self.thread.join());
        let received = joining
            .await?
            .map_err(|_| anyhow!("the consumer panicked"))??;
        let records = received.records;
        ensure!(
            records == committed,
            "{records} records of {committed} commits"
        );
        Ok(received)
    }
}

fn consume(consumer: &BaseConsumer, measured_from_us: u64, wanted: &AtomicU64) -> Result<Received> {
    let mut received = Received {
        records: 0,
        since_created: histogram()?,
        since_due: histogram()?,
    };
    let mut deadline = None;
    loop {
        match consumer.poll(POLL_TIMEOUT) {
            Some(Ok(record)) => received.add(&record, measured_from_us)?,
            Some(Err(err)) => return Err(err.into()),
            // Nothing came for a moment: too many would have been seen by now.
            None if received.records >= wanted.load(Ordering::Relaxed) => return Ok(received),
            None => {}
        }
        let wanted = wanted.load(Ordering::Relaxed);
        if wanted == UNKNOWN {
            continue;
        }
        let deadline = deadline.get_or_insert_with(|| Instant::now() + ARRIVAL_TIMEOUT);
        if Instant::now() > *deadline {
            bail!("only {} of {wanted} records came", received.records);
        }
    }
}

impl Received {
    fn add(&mut self, record: &BorrowedMessage<'_>, measured_from_us: u64) -> Result<()> {
        let now_us = unix_us(SystemTime::now());
        self.records += 1;
        let due_us = record.payload().and_then(due_us).context("no due_us")?;
        if due_us >= measured_from_us {
            let created_us = created_us(record).context("no ce_time")?;
            self.since_created
                .saturating_record(now_us.saturating_sub(created_us));
            self.since_due
                .saturating_record(now_us.saturating_sub(due_us));
        }
        Ok(())
    }
}

/// The clock in the row.
fn created_us(record: &BorrowedMessage<'_>) -> Option<u64> {
    let headers = record.headers()?;
    let header = headers.iter().find(|header| header.key == "ce_time")?;
    let text = std::str::from_utf8(header.value?).ok()?;
    let time = DateTime::parse_from_rfc3339(text.trim_matches('"')).ok()?;
    u64::try_from(time.timestamp_micros()).ok()
}
