use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use devstack::Auditor;
use rdkafka::{
    Message as _,
    consumer::BaseConsumer,
    message::{BorrowedMessage, Headers as _},
};

const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// After the last commit: time without a new event after which the missing events count as lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The number of commits is not known yet.
const UNKNOWN: u64 = u64::MAX;

/// Consumes and audits every record on its own thread.
pub(super) struct Accountant {
    thread: JoinHandle<Result<Accounts>>,
    received: Arc<AtomicU64>,
    expected: Arc<AtomicU64>,
}

/// The result of an [`Accountant`].
pub(super) struct Accounts {
    pub(super) auditor: Auditor,
    /// The longest time without a new event.
    pub(super) longest_pause: Duration,
}

impl Accountant {
    pub(super) fn start(consumer: BaseConsumer) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let expected = Arc::new(AtomicU64::new(UNKNOWN));
        let thread = {
            let (received, expected) = (Arc::clone(&received), Arc::clone(&expected));
            thread::spawn(move || consume(&consumer, &received, &expected))
        };
        Self {
            thread,
            received,
            expected,
        }
    }

    /// Returns the number of distinct events received so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until all committed events were received, or no more arrive.
    pub(super) async fn finish(self, committed: u64) -> Result<Accounts> {
        self.expected.store(committed, Ordering::Relaxed);
        let joining = tokio::task::spawn_blocking(move || self.thread.join());
        joining
            .await?
            .map_err(|_| anyhow!("the consumer panicked"))?
    }
}

fn consume(
    consumer: &BaseConsumer,
    received: &AtomicU64,
    expected: &AtomicU64,
) -> Result<Accounts> {
    let mut accounts = Accounts {
        auditor: Auditor::default(),
        longest_pause: Duration::ZERO,
    };
    let mut last_new: Option<Instant> = None;
    loop {
        if let Some(record) = consumer.poll(POLL_TIMEOUT) {
            let (key, version) =
                parse_identity(&record?).context("a record has no key or version")?;
            accounts.auditor.add(&key, version);
            let now_received = accounts.auditor.distinct_versions() as u64;
            if received.swap(now_received, Ordering::Relaxed) != now_received {
                let pause = last_new.map_or(Duration::ZERO, |last| last.elapsed());
                accounts.longest_pause = accounts.longest_pause.max(pause);
                last_new = Some(Instant::now());
            }
            continue;
        }
        let expected = expected.load(Ordering::Relaxed);
        if expected == UNKNOWN {
            continue;
        }
        // Nothing arrived within the poll timeout, so no more duplicates are expected.
        let is_complete = accounts.auditor.distinct_versions() as u64 >= expected;
        if is_complete || last_new.is_none_or(|last| last.elapsed() > STALL_TIMEOUT) {
            return Ok(accounts);
        }
    }
}

/// Returns the key and the version of a record's aggregate.
fn parse_identity(record: &BorrowedMessage<'_>) -> Option<(String, i64)> {
    let headers = record.headers()?;
    let header = (headers.iter()).find(|header| header.key == "ce_aggregateversion")?;
    let version = std::str::from_utf8(header.value?).ok()?.parse().ok()?;
    let key = std::str::from_utf8(record.key()?).ok()?;
    Some((key.to_owned(), version))
}
