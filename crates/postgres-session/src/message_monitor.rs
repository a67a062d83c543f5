//! Follows the messages of a session: its requests without a response, the process id, and errors.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::time::{Instant, Sleep};

use crate::{error_response, transport::Connector};

/// The size of a message's type and length.
const HEADER_BYTES: usize = 5;
/// A longer ErrorResponse is not rewritten. Postgres' messages are much shorter.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// Follows the messages of a session.
pub(crate) struct MessageMonitor {
    startup_timeout: Duration,
    /// `None` if messages are followed only until the session is ready.
    response_timeout: Option<Duration>,
    is_ready: bool,
    process_id: Arc<AtomicI32>,
    requests: RequestScanner,
    /// Requests without a ReadyForQuery.
    pending: u64,
    /// Runs while a request is pending.
    timer: Pin<Box<Sleep>>,
    /// Received bytes that are not processed yet: the start of a message.
    pub(crate) input: BytesMut,
    /// The rest of a message that is passed on unchanged.
    rest: usize,
    /// Processed bytes.
    pub(crate) output: BytesMut,
    /// Nothing is followed any more.
    pub(crate) is_done: bool,
}

impl MessageMonitor {
    pub(crate) fn new(connector: Connector) -> Self {
        Self {
            startup_timeout: connector.startup_timeout,
            response_timeout: connector.response_timeout,
            is_ready: false,
            process_id: connector.process_id,
            requests: RequestScanner::default(),
            pending: 0,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            input: BytesMut::new(),
            rest: 0,
            output: BytesMut::new(),
            is_done: false,
        }
    }

    /// Counts the requests in sent bytes, and starts the timer.
    pub(crate) fn follow_sent(&mut self, bytes: &[u8], cx: &mut Context<'_>) {
        let was_idle = self.pending == 0;
        self.pending += self.requests.count(bytes);
        if was_idle && self.pending > 0 {
            self.restart_timer();
        }
        if self.pending > 0 && self.timeout().is_some() {
            // Registers the task, which does not read while it writes.
            let _ = self.timer.as_mut().poll(cx);
        }
    }

    /// Processes the received bytes.
    pub(crate) fn follow_received(&mut self) {
        loop {
            let passed = self.rest.min(self.input.len());
            self.output.extend_from_slice(&self.input[..passed]);
            self.input.advance(passed);
            self.rest -= passed;
            let Some([kind, length @ ..]) = self.input.first_chunk::<HEADER_BYTES>() else {
                return;
            };
            let (kind, length) = (*kind, u32::from_be_bytes(*length) as usize + 1);
            match kind {
                b'E' if self.response_timeout.is_some() && length <= MAX_ERROR_BYTES => {
                    if self.input.len() < length {
                        return;
                    }
                    let message = self.input.split_to(length);
                    let body = message.get(HEADER_BYTES..).unwrap_or_default();
                    error_response::rewrite(body, &mut self.output);
                    continue;
                }
                // BackendKeyData
                b'K' => match self.input[HEADER_BYTES..].first_chunk() {
                    Some(id) => self
                        .process_id
                        .store(i32::from_be_bytes(*id), Ordering::Release),
                    None => return,
                },
                // ReadyForQuery
                b'Z' => {
                    self.pending = self.pending.saturating_sub(1);
                    self.is_ready = true;
                    self.is_done = self.response_timeout.is_none();
                }
                _ => {}
            }
            self.rest = length;
        }
    }

    fn timeout(&self) -> Option<Duration> {
        match self.is_ready {
            false => Some(self.startup_timeout),
            true => self.response_timeout,
        }
    }

    pub(crate) fn restart_timer(&mut self) {
        if let Some(timeout) = self.timeout() {
            self.timer.as_mut().reset(Instant::now() + timeout);
        }
    }

    /// Fails when the response to a pending request is late.
    pub(crate) fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(timeout) = self.timeout().filter(|_| self.pending > 0) else {
            return Poll::Pending;
        };
        ready!(self.timer.as_mut().poll(cx));
        let err = no_response(timeout);
        if self.is_ready {
            tracing::warn!("{err}, closing the session");
        }
        Poll::Ready(Err(err))
    }
}

/// Finds requests, which Postgres answers with ReadyForQuery, among sent messages.
#[derive(Default)]
struct RequestScanner {
    header: [u8; HEADER_BYTES],
    /// The bytes of `header` that are known.
    known: usize,
    /// The bytes of the current message that are not sent yet.
    rest: usize,
    /// The first message has no type.
    is_started: bool,
}

impl RequestScanner {
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut requests = 0;
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            (self.rest, bytes) = (self.rest - skipped, &bytes[skipped..]);
            // As if a type preceded the length of the first message.
            if !self.is_started && self.known == 0 {
                self.known = 1;
            }
            let read = (HEADER_BYTES - self.known).min(bytes.len());
            self.header[self.known..self.known + read].copy_from_slice(&bytes[..read]);
            (self.known, bytes) = (self.known + read, &bytes[read..]);
            if self.known == HEADER_BYTES {
                let [kind, length @ ..] = self.header;
                // Query, Sync, FunctionCall, or the first message.
                requests += u64::from(!self.is_started || matches!(kind, b'Q' | b'S' | b'F'));
                self.is_started = true;
                self.known = 0;
                self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(4);
            }
        }
        requests
    }
}

/// Returns the error of a server that does not respond in time.
pub(crate) fn no_response(timeout: Duration) -> io::Error {
    let message = format!("no response from the database within {timeout:?}");
    io::Error::new(io::ErrorKind::TimedOut, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Writes of any size see the same requests.
        #[test]
        fn requests_are_counted_across_writes(
            messages in prop::collection::vec((prop::sample::select(b"QSFPBED".as_slice()), 0..50_usize), 0..20),
            sizes in prop::collection::vec(1..30_usize, 1..20),
        ) {
            let mut bytes = vec![0, 0, 0, 9, 1, 2, 3, 4, 5];
            let mut expected = 1;
            for (kind, length) in &messages {
                bytes.push(*kind);
                bytes.extend((*length as u32 + 4).to_be_bytes());
                bytes.extend(vec![b'S'; *length]);
                expected += u64::from(b"QSF".contains(kind));
            }
            let mut scanner = RequestScanner::default();
            let (mut counted, mut rest, mut sizes) = (0, &*bytes, sizes.iter().cycle());
            while !rest.is_empty() {
                let size = (*sizes.next().unwrap()).min(rest.len());
                counted += scanner.count(&rest[..size]);
                rest = &rest[size..];
            }
            prop_assert_eq!(counted, expected);
        }
    }
}
