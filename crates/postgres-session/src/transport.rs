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

use bytes::Buf as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_postgres::{
    Socket,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    message_monitor::{MessageMonitor, no_response},
    url::Encryption,
};

/// The request to start TLS: its length and its code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The space for a read.
const READ_BYTES: usize = 8 * 1024;

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
            let monitor = MessageMonitor::new(connector);
            Ok(Transport { stream, monitor })
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

/// The bytes of a session.
pub(crate) struct Transport {
    stream: Stream,
    monitor: MessageMonitor,
}

enum Stream {
    Plain(Socket),
    Tls(Box<TlsSocket>),
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, monitor } = &mut *self;
        loop {
            if !monitor.output.is_empty() {
                let count = monitor.output.len().min(buf.remaining());
                buf.put_slice(&monitor.output[..count]);
                monitor.output.advance(count);
                return Poll::Ready(Ok(()));
            }
            if monitor.is_done && monitor.input.is_empty() {
                return Pin::new(stream).poll_read(cx, buf);
            }
            monitor.input.reserve(READ_BYTES);
            match tokio_util::io::poll_read_buf(Pin::new(&mut *stream), cx, &mut monitor.input) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {
                    monitor.follow_received();
                    monitor.restart_timer();
                }
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => return monitor.poll_timeout(cx),
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
        let Self { stream, monitor } = &mut *self;
        let written = ready!(Pin::new(stream).poll_write(cx, buf))?;
        if !monitor.is_done {
            monitor.follow_sent(&buf[..written], cx);
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
