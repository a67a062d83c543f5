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
    thread: JoinHandle<Result<Auditor>>,
    told: Arc<AtomicU64>,
    wanted: Arc<AtomicU64>,
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
    pub(super) async fn finish(self, committed: u64) -> Result<Auditor> {
        self.wanted.store(committed, Ordering::Relaxed);
        let joining = tokio::task::spawn_blocking(move || self.thread.join());
        joining
            .await?
            .map_err(|_| anyhow!("the consumer panicked"))?
    }
}

fn consume(consumer: &BaseConsumer, told: &AtomicU64, wanted: &AtomicU64) -> Result<Auditor> {
    let mut auditor = Auditor::default();
    let mut last_news = Instant::now();
    loop {
        match consumer.poll(POLL_TIMEOUT) {
            Some(record) => {
                let (key, version) = identity(&record?).context("a record has no version")?;
                auditor.see(&key, version);
                let now_told = auditor.told() as u64;
                if told.swap(now_told, Ordering::Relaxed) != now_told {
                    last_news = Instant::now();
                }
            }
            None => match wanted.load(Ordering::Relaxed) {
                UNKNOWN => last_news = Instant::now(),
                // Nothing came for a moment: what is repeated would have come by now.
                wanted if auditor.told() as u64 >= wanted => return Ok(auditor),
                _ if last_news.elapsed() > STALL_TIMEOUT => return Ok(auditor),
                _ => {}
            },
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
