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
/// Limit for the last record to arrive after the last commit.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);
/// The number of records is not known yet.
const UNKNOWN: u64 = u64::MAX;

/// Consumes on its own thread with librdkafka.
pub(super) struct Consumer {
    thread: JoinHandle<Result<Received>>,
    expected: Arc<AtomicU64>,
}

/// The received records and their latencies in microseconds. The histograms hold only records that
/// were scheduled during the measurement.
pub(super) struct Received {
    records: u64,
    pub(super) since_created: Histogram<u64>,
    pub(super) since_due: Histogram<u64>,
}

impl Consumer {
    /// Starts consuming. Records scheduled before `measured_from_us` belong to the warm-up.
    pub(super) fn start(consumer: BaseConsumer, measured_from_us: u64) -> Self {
        let expected = Arc::new(AtomicU64::new(UNKNOWN));
        let thread = {
            let expected = Arc::clone(&expected);
            thread::spawn(move || consume(&consumer, measured_from_us, &expected))
        };
        Self { thread, expected }
    }

    /// Waits until all committed records have arrived. Fails if there are more.
    pub(super) async fn finish(self, committed: u64) -> Result<Received> {
        self.expected.store(committed, Ordering::Relaxed);
        let joining = tokio::task::spawn_blocking(move || self.thread.join());
        let received = joining
            .await?
            .map_err(|_| anyhow!("the consumer panicked"))??;
        let records = received.records;
        ensure!(
            records == committed,
            "received {records} records of {committed} commits"
        );
        Ok(received)
    }
}

fn consume(
    consumer: &BaseConsumer,
    measured_from_us: u64,
    expected: &AtomicU64,
) -> Result<Received> {
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
            // No record within the poll timeout: unexpected ones would have arrived by now.
            None => {
                if received.records >= expected.load(Ordering::Relaxed) {
                    return Ok(received);
                }
            }
        }
        let expected = expected.load(Ordering::Relaxed);
        if expected == UNKNOWN {
            continue;
        }
        let deadline = deadline.get_or_insert_with(|| Instant::now() + ARRIVAL_TIMEOUT);
        if Instant::now() > *deadline {
            bail!(
                "received only {} of {expected} records within {ARRIVAL_TIMEOUT:?}",
                received.records
            );
        }
    }
}

impl Received {
    fn add(&mut self, record: &BorrowedMessage<'_>, measured_from_us: u64) -> Result<()> {
        let now_us = unix_us(SystemTime::now());
        self.records += 1;
        let due_us = record
            .payload()
            .and_then(due_us)
            .context("a record has no due_us")?;
        if due_us >= measured_from_us {
            let created_us = created_us(record).context("a record has no ce_time")?;
            self.since_created
                .saturating_record(now_us.saturating_sub(created_us));
            self.since_due
                .saturating_record(now_us.saturating_sub(due_us));
        }
        Ok(())
    }
}

/// Returns the timestamp of the row.
fn created_us(record: &BorrowedMessage<'_>) -> Option<u64> {
    let headers = record.headers()?;
    let header = headers.iter().find(|header| header.key == "ce_time")?;
    let text = std::str::from_utf8(header.value?).ok()?;
    let time = DateTime::parse_from_rfc3339(text.trim_matches('"')).ok()?;
    u64::try_from(time.timestamp_micros()).ok()
}
