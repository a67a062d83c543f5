use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a client does on its connection. Calls find it in the request's extensions.
#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    /// The time of the last received byte, in milliseconds after `opened`.
    last_received_ms: AtomicU64,
    calls: AtomicUsize,
    /// Closes the connection.
    pub(super) close: CancellationToken,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            opened: Instant::now(),
            last_received_ms: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            close: CancellationToken::new(),
        }
    }

    pub(super) fn record_received_bytes(&self) {
        let elapsed = self.opened.elapsed().as_millis();
        self.last_received_ms
            .store(u64::try_from(elapsed).unwrap_or(u64::MAX), Relaxed);
    }

    /// Returns the time since the last received byte, or `None` while a call is in progress, whose client has nothing
    /// to send.
    pub(super) fn silence(&self) -> Option<Duration> {
        let last_received = Duration::from_millis(self.last_received_ms.load(Relaxed));
        let silence = self.opened.elapsed().saturating_sub(last_received);
        (self.calls.load(Relaxed) == 0).then_some(silence)
    }
}

/// A call. It is in progress from the end of its request to the end of its response: a client that does not complete
/// its request does not keep its connection by it.
#[derive(Debug)]
pub(crate) struct CallActivity {
    connection: Option<Arc<Activity>>,
    is_in_progress: AtomicBool,
}

impl CallActivity {
    /// Creates a call on this connection, if known.
    pub(crate) fn new(connection: Option<Arc<Activity>>) -> Self {
        Self {
            connection,
            is_in_progress: AtomicBool::new(false),
        }
    }

    pub(crate) fn record_end_of_request(&self) {
        if let Some(connection) = &self.connection
            && !self.is_in_progress.swap(true, Relaxed)
        {
            connection.calls.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for CallActivity {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection
            && *self.is_in_progress.get_mut()
        {
            connection.calls.fetch_sub(1, Relaxed);
        }
    }
}
