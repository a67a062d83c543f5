//! The connection below a session: negotiates TLS, and fails if the server does not respond.
//!
//! A TCP connection can fall silent without an error: a firewall drops its state, an address moves to another machine, the
//! server's machine is suspended. Timeouts of the server do not help then, and TCP reports it after minutes, or never if a
//! proxy still acknowledges. So the transport counts the requests without a response, and limits the wait for the next byte.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::{Instant, Sleep},
};
use tokio_postgres::{
    Socket,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{error_response, url::Encryption};

/// The request to start TLS: its length and its code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The size of a message's type and length.
const HEADER_BYTES: usize = 5;
/// The space for a read.
const READ_BYTES: usize = 8 * 1024;
/// A longer ErrorResponse is not rewritten. Postgres' messages are much shorter.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// The server does not support TLS, and `sslmode` requires it.
#[derive(Debug, thiserror::Error)]
#[error("server does not support TLS")]
pub(crate) struct TlsUnsupported;

/// The response to the request for TLS is neither yes nor no.
#[derive(Debug, thiserror::Error)]
#[error("the server does not respond as Postgres does, or it is out of connections")]
struct NotPostgres;

type TlsSocket = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Opens the transport of a connection. tokio-postgres lets it negotiate TLS itself (`sslnegotiation=direct`).
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) tls: MakeRustlsConnect,
    pub(crate) encryption: Encryption,
    /// The longest wait for the next byte until the session is ready.
    pub(crate) startup_timeout: Duration,
    /// The longest wait for the next byte of a response. `None`: no limit, and errors are not rewritten.
    pub(crate) response_timeout: Option<Duration>,
    /// The process id of the server, as it sends it for cancellation. A pooler sends another number than that of the server
    /// process.
    pub(crate) process_id: Arc<AtomicI32>,
    /// A server offered TLS, and the handshake failed.
    pub(crate) tls_failed: Arc<AtomicBool>,
}

impl Connector {
    pub(crate) fn has_tls_failed(&self) -> bool {
        self.tls_failed.load(Ordering::Acquire)
    }
}

/// Opens the transport to one server.
pub(crate) struct OneConnector {
    tls: <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect,
    connector: Connector,
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Transport;
    type TlsConnect = OneConnector;
    type Error = BoxError;

    fn make_tls_connect(&mut self, host: &str) -> Result<OneConnector, BoxError> {
        Ok(OneConnector {
            tls: MakeTlsConnect::<Socket>::make_tls_connect(&mut self.tls, host)?,
            connector: self.clone(),
        })
    }
}

impl TlsConnect<Socket> for OneConnector {
    type Stream = Transport;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Transport, BoxError>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let Self { tls, connector } = self;
            let timeout = connector.startup_timeout;
            let negotiating = negotiate(socket, &connector, tls);
            let stream = tokio::time::timeout(timeout, negotiating).await;
            let stream = stream.unwrap_or_else(|_| Err(no_response(timeout).into()))?;
            let watch = Watch::new(connector);
            Ok(Transport { stream, watch })
        })
    }
}

async fn negotiate(
    mut socket: Socket,
    connector: &Connector,
    tls: impl TlsConnect<Socket, Stream = TlsSocket, Error = io::Error>,
) -> Result<Stream, BoxError> {
    if connector.encryption == Encryption::Disable {
        return Ok(Stream::Plain(socket));
    }
    socket.write_all(&SSL_REQUEST).await?;
    match socket.read_u8().await? {
        b'S' => {
            let connected = tls.connect(socket).await;
            connector
                .tls_failed
                .store(connected.is_err(), Ordering::Release);
            Ok(Stream::Tls(Box::new(connected?)))
        }
        b'N' if connector.encryption == Encryption::Prefer => Ok(Stream::Plain(socket)),
        b'N' => Err(TlsUnsupported.into()),
        _ => Err(NotPostgres.into()),
    }
}

fn no_response(timeout: Duration) -> io::Error {
    let message = format!("no response from the database within {timeout:?}");
    io::Error::new(io::ErrorKind::TimedOut, message)
}

/// The bytes of a session.
pub(crate) struct Transport {
    stream: Stream,
    watch: Watch,
}

enum Stream {
    Plain(Socket),
    Tls(Box<TlsSocket>),
}

/// Follows the messages of a session.
struct Watch {
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
    input: BytesMut,
    /// The rest of a message that is passed on unchanged.
    rest: usize,
    /// Processed bytes.
    output: BytesMut,
    /// Nothing is followed any more.
    is_done: bool,
}

impl Watch {
    fn new(connector: Connector) -> Self {
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
    fn follow_sent(&mut self, bytes: &[u8], cx: &mut Context<'_>) {
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
    fn follow_received(&mut self) {
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

    fn restart_timer(&mut self) {
        if let Some(timeout) = self.timeout() {
            self.timer.as_mut().reset(Instant::now() + timeout);
        }
    }

    /// Fails when the response to a pending request is late.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, watch } = &mut *self;
        loop {
            if !watch.output.is_empty() {
                let count = watch.output.len().min(buf.remaining());
                buf.put_slice(&watch.output[..count]);
                watch.output.advance(count);
                return Poll::Ready(Ok(()));
            }
            if watch.is_done && watch.input.is_empty() {
                return Pin::new(stream).poll_read(cx, buf);
            }
            watch.input.reserve(READ_BYTES);
            match tokio_util::io::poll_read_buf(Pin::new(&mut *stream), cx, &mut watch.input) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {
                    watch.follow_received();
                    watch.restart_timer();
                }
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => return watch.poll_timeout(cx),
            }
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, watch } = &mut *self;
        let written = ready!(Pin::new(stream).poll_write(cx, buf))?;
        if !watch.is_done {
            watch.follow_sent(&buf[..written], cx);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl TlsStream for Transport {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.stream {
            Stream::Plain(_) => ChannelBinding::none(),
            Stream::Tls(stream) => stream.channel_binding(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
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
