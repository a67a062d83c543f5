//! The connections to the admin port: never so many that none is left for Postgres and Kafka.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Connections that may be open at once. The oldest makes way for a new one, so that a probe is
/// answered whoever holds the others.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may be open. Every answer is there at once; what stays longer says nothing,
/// or takes its time to.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes connections.
pub(super) struct Incoming {
    listener: TcpListener,
    /// What ends each of the last connections, the oldest first.
    ends: VecDeque<CancellationToken>,
}

impl Incoming {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            ends: VecDeque::new(),
        }
    }
}

impl Listener for Incoming {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        if self.ends.len() == MAX_CONNECTIONS
            && let Some(oldest) = self.ends.pop_front()
        {
            oldest.cancel();
        }
        let end = CancellationToken::new();
        self.ends.push_back(end.clone());
        let end = timeout(CONNECTION_TIMEOUT, end.cancelled_owned());
        let end: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async {
            // Whichever comes first.
            let _ = end.await;
        });
        let connection = Connection {
            stream,
            end,
            is_over: false,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when it has to.
pub(super) struct Connection {
    stream: TcpStream,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// A future that is ready may not be polled again.
    is_over: bool,
}

impl Connection {
    /// An error once the connection has to end, however busy it is.
    fn ended<T>(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<T>>> {
        let has_ended = self.is_over || self.end.as_mut().poll(cx).is_ready();
        self.is_over = has_ended;
        has_ended.then(|| Poll::Ready(Err(io::ErrorKind::TimedOut.into())))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ended(cx)
            .unwrap_or_else(|| Pin::new(&mut self.stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.ended(cx)
            .unwrap_or_else(|| Pin::new(&mut self.stream).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
