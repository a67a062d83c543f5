use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The calls of a connection. Calls find it in the request's extensions.
///
/// Received bytes do not count: a client can send PINGs without a call.
#[derive(Debug)]
pub(crate) struct Activity {
    calls: Mutex<Calls>,
    /// Closes the connection.
    pub(super) close: CancellationToken,
}

#[derive(Debug)]
struct Calls {
    in_progress: usize,
    /// The end of the last call, at first the time at which the connection was opened.
    idle_since: Instant,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            calls: Mutex::new(Calls {
                in_progress: 0,
                idle_since: Instant::now(),
            }),
            close: CancellationToken::new(),
        }
    }

    /// Returns the time since the end of the last call, or `None` while a call is in progress.
    pub(super) fn idle_time(&self) -> Option<Duration> {
        let calls = self.calls.lock();
        (calls.in_progress == 0).then(|| calls.idle_since.elapsed())
    }

    fn begin_call(&self) {
        self.calls.lock().in_progress += 1;
    }

    fn end_call(&self) {
        let mut calls = self.calls.lock();
        calls.in_progress -= 1;
        calls.idle_since = Instant::now();
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
            connection.begin_call();
        }
    }
}

impl Drop for CallActivity {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection
            && *self.is_in_progress.get_mut()
        {
            connection.end_call();
        }
    }
}
