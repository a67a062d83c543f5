//! Accepts connections, with a limit on open connections and a timeout for the HTTP/2 preface.
//!
//! tonic's own accept loop spins when the process is out of file descriptors, and never closes a
//! connection that sends no HTTP/2 preface.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// The delay between two attempts while accept fails, until file descriptors are free again.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);
/// The time limit for the HTTP/2 preface.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// The length of the preface (RFC 9113, 3.4). After it, keepalive detects dead connections.
const PREFACE_BYTES: usize = 24;

/// Accepts connections while fewer than `max_connections` are open. Further ones wait in the
/// listener's backlog.
pub(crate) fn accept_connections(
    listener: TcpListener,
    max_connections: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(max_connections));
    stream::unfold(listener, move |listener| {
        let permits = Arc::clone(&permits);
        async move {
            let permit = permits.acquire_owned().await.ok()?;
            let stream = accept(&listener).await;
            Some((Ok(Connection::new(stream, permit)), listener))
        }
    })
}

/// Accepts the next connection; logs only the first of several failures.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut is_logged = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // The client closed this connection before it was accepted; accept the next one.
            Err(err) if err.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !is_logged {
                    tracing::error!(%error, "failed to accept a connection, retrying");
                    is_logged = true;
                }
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// A client connection and its permit.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    preface: Option<PendingPreface>,
    _permit: OwnedSemaphorePermit,
}

/// The missing part of the preface, and the time left for it.
#[derive(Debug)]
struct PendingPreface {
    missing_bytes: usize,
    timeout: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: TcpStream, permit: OwnedSemaphorePermit) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY, responses may be delayed");
        }
        let preface = PendingPreface {
            missing_bytes: PREFACE_BYTES,
            timeout: Box::pin(sleep(PREFACE_TIMEOUT)),
        };
        Self {
            stream,
            preface: Some(preface),
            _permit: permit,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some(preface) = &mut this.preface else {
            return read;
        };
        let count = buf.filled().len() - before;
        preface.missing_bytes = preface.missing_bytes.saturating_sub(count);
        if preface.missing_bytes == 0 {
            this.preface = None;
        } else if read.is_pending() && preface.timeout.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
