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
/// After the last commit, how long nothing new may come before the rest counts as lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// While nobody knows yet how many commits there will be.
const UNKNOWN: u64 = u64::MAX;

/// Accounts for every record, on a thread of its own.
pub(super) struct Accountant {
    thread: JoinHandle<Result<Accounts>>,
    told: Arc<AtomicU64>,
    wanted: Arc<AtomicU64>,
}

/// What came of it.
pub(super) struct Accounts {
    pub(super) auditor: Auditor,
    /// The longest time without an event that had not come before.
    pub(super) longest_pause: Duration,
}

impl Accountant {
    pub(super) fn start(consumer: BaseConsumer) -> Self {
        let told = Arc::new(AtomicU64::new(0));
        let wanted = Arc::new(AtomicU64::new(UNKNOWN));
        let thread = {
            let (told, wanted) = (Arc::clone(&told), Arc::clone(&wanted));
            thread::spawn(move || consume(&consumer, &told, &wanted))
        };
        Self {
            thread,
            told,
            wanted,
        }
    }

    /// How many events have come so far, whatever was repeated.
    pub(super) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Waits until as many events have come as were committed, or no more come.
    pub(super) async fn finish(self, committed: u64) -> Result<Accounts> {
        self.wanted.store(committed, Ordering::Relaxed);
        let joining = tokio::task::spawn_blocking(move || self.thread.join());
        joining
            .await?
            .map_err(|_| anyhow!("the consumer panicked"))?
    }
}

fn consume(consumer: &BaseConsumer, told: &AtomicU64, wanted: &AtomicU64) -> Result<Accounts> {
    let mut accounts = Accounts {
        auditor: Auditor::default(),
        longest_pause: Duration::ZERO,
    };
    let mut last_news: Option<Instant> = None;
    loop {
        if let Some(record) = consumer.poll(POLL_TIMEOUT) {
            let (key, version) = identity(&record?).context("a record has no version")?;
            accounts.auditor.add(&key, version);
            let now_told = accounts.auditor.distinct_versions() as u64;
            if told.swap(now_told, Ordering::Relaxed) != now_told {
                let pause = last_news.map_or(Duration::ZERO, |last| last.elapsed());
                accounts.longest_pause = accounts.longest_pause.max(pause);
                last_news = Some(Instant::now());
            }
            continue;
        }
        let wanted = wanted.load(Ordering::Relaxed);
        if wanted == UNKNOWN {
            continue;
        }
        // Nothing came for a moment: what is repeated would have come by now.
        let is_all = accounts.auditor.distinct_versions() as u64 >= wanted;
        if is_all || last_news.is_none_or(|last| last.elapsed() > STALL_TIMEOUT) {
            return Ok(accounts);
        }
    }
}

/// Which version of which aggregate a record tells of.
fn identity(record: &BorrowedMessage<'_>) -> Option<(String, i64)> {
    let headers = record.headers()?;
    let header = (headers.iter()).find(|header| header.key == "ce_aggregateversion")?;
    let version = std::str::from_utf8(header.value?).ok()?.parse().ok()?;
    let key = std::str::from_utf8(record.key()?).ok()?;
    Some((key.to_owned(), version))
}
