//! Accepts connections, with limits on open connections and a timeout for the HTTP/2 preface.
//!
//! tonic's own accept loop spins when the process is out of file descriptors, and never closes a
//! connection that sends no HTTP/2 preface.

mod activity;
mod open;

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use self::open::{OpenConnections, Slot};
pub(crate) use self::{
    activity::{Activity, CallActivity},
    open::ConnectionLimits,
};

/// The delay between two attempts while accept fails, until file descriptors are free again.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);
/// The time limit for the HTTP/2 preface.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead connection is detected after about the sum of these two.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The length of the preface (RFC 9113, 3.4). After it, keepalive detects dead connections.
const PREFACE_BYTES: usize = 24;

/// Accepts connections within the limits. While all are in use, further ones wait in the listener's backlog.
pub(crate) fn accept_connections(
    listener: TcpListener,
    limits: ConnectionLimits,
) -> impl Stream<Item = io::Result<Connection>> {
    let open = Arc::new(OpenConnections::new(limits));
    stream::unfold(listener, move |listener| {
        let open = Arc::clone(&open);
        async move {
            loop {
                let (stream, address) = accept(&listener).await;
                // Dropping the connection of a peer with too many closes it.
                if let Some(slot) = open.admit(address).await {
                    return Some((Ok(Connection::new(stream, slot)), listener));
                }
            }
        }
    })
}

/// Accepts the next connection; logs only the first of several failures.
async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    let mut is_logged = false;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => return (stream, address.ip()),
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

/// A client connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    preface: Option<PendingPreface>,
    slot: Slot,
    /// Completes when the connection is closed to admit another.
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The missing part of the preface, and the time left for it.
#[derive(Debug)]
struct PendingPreface {
    missing_bytes: usize,
    timeout: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: TcpStream, slot: Slot) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY, responses may be delayed");
        }
        // HTTP/2 has its own keepalive, HTTP/1.1 has none.
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_INTERVAL)
            .with_interval(KEEPALIVE_TIMEOUT);
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
            tracing::debug!(%error, "failed to set TCP keepalive, dead connections may stay open");
        }
        let preface = PendingPreface {
            missing_bytes: PREFACE_BYTES,
            timeout: Box::pin(sleep(PREFACE_TIMEOUT)),
        };
        Self {
            stream,
            preface: Some(preface),
            closing: Box::pin(slot.activity.close.clone().cancelled_owned()),
            slot,
        }
    }

    /// Fails if the connection is closed to admit another; otherwise wakes the task when it is.
    fn fail_if_closed(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.closing.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Activity>;

    fn connect_info(&self) -> Arc<Activity> {
        Arc::clone(&self.slot.activity)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Also while bytes arrive: a client can send without a pause.
        this.fail_if_closed(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let count = buf.filled().len() - before;
        let Some(preface) = &mut this.preface else {
            return read;
        };
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
        // While a client reads nothing, HTTP/2 does not read either.
        self.fail_if_closed(cx)?;
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
        self.fail_if_closed(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
