//! The connections that a server takes: not too many at once, and none that never says a word.
//!
//! tonic's own accept loop tries again at once when there is no file descriptor left, which burns a
//! core until there is one; and nothing in it ends a connection that never begins to speak HTTP/2.

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

/// Between two tries when no connection can be taken: file descriptors have to come free first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long a client may take to say that it speaks HTTP/2.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// `PRI * HTTP/2.0`, with its line ends: RFC 9113, 3.4. From there on keepalive watches over it.
const PREFACE_BYTES: usize = 24;

/// The connections of `listener`, of which at most `max_connections` are open at once. Those that
/// come while there are as many wait in the system's queue.
pub(crate) fn incoming(
    listener: TcpListener,
    max_connections: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(max_connections));
    stream::unfold(listener, move |listener| {
        let places = Arc::clone(&places);
        async move {
            let place = places.acquire_owned().await.ok()?;
            let stream = accept(&listener).await;
            Some((Ok(Connection::new(stream, place)), listener))
        }
    })
}

/// The next connection; tells once if it takes several tries.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut is_told = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // This connection went away before it was looked at; the next one need not wait.
            Err(err) if err.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !is_told {
                    tracing::error!(%error, "can't take connections, trying again");
                    is_told = true;
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection, and its place among those that may be open.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    silence: Option<Silence>,
    _place: OwnedSemaphorePermit,
}

/// What is left of the preface, and of the time for it.
#[derive(Debug)]
struct Silence {
    missing_bytes: usize,
    end: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "answers may be held back for a moment");
        }
        let silence = Silence {
            missing_bytes: PREFACE_BYTES,
            end: Box::pin(sleep(PREFACE_TIMEOUT)),
        };
        Self {
            stream,
            silence: Some(silence),
            _place: place,
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
        let Some(silence) = &mut this.silence else {
            return read;
        };
        let count = buf.filled().len() - before;
        silence.missing_bytes = silence.missing_bytes.saturating_sub(count);
        if silence.missing_bytes == 0 {
            this.silence = None;
        } else if read.is_pending() && silence.end.as_mut().poll(cx).is_ready() {
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
