use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    time::Instant,
};

use super::{Fault, State};

const CHUNK_BYTES: usize = 16 * 1024;
/// The limit on delayed or silenced chunks per direction. Reading stops when it is reached.
const QUEUED_CHUNKS: usize = 1_000;

/// A client's connection and the one to the server.
pub(super) struct Connection {
    state: watch::Receiver<State>,
    epoch: u64,
    cut_after: Option<u64>,
}

#[derive(PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

impl Connection {
    pub(super) fn new(state: watch::Receiver<State>) -> Self {
        let (epoch, fault) = {
            let now = state.borrow();
            (now.epoch, now.fault)
        };
        let cut_after = match fault {
            Fault::CutAfter(bytes) => Some(bytes),
            _ => None,
        };
        Self {
            state,
            epoch,
            cut_after,
        }
    }

    /// Forwards bytes until the connection ends.
    pub(super) async fn run(&self, mut client: TcpStream) -> io::Result<()> {
        let connected = tokio::select! {
            server = self.connect() => Ok(server?),
            end = self.wait_for_end() => Err(end),
        };
        let mut server = match connected {
            Ok(server) => server,
            Err(end) => return end.apply(&[&client]),
        };
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let end = tokio::select! {
            forwarded = self.forward(&mut client, &mut server) => return forwarded,
            end = self.wait_for_end() => end,
        };
        end.apply(&[&client, &server])
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        self.wait_until_forwarding().await?;
        let target = self.state.borrow().target.clone();
        TcpStream::connect(target).await
    }

    async fn forward(&self, client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
        // Borrowed halves: dropping an owned one would end the connection before it can be reset.
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let requests = self.copy(from_client, to_server, |fault| match fault {
            Fault::Delay { to_server, .. } => to_server,
            _ => Duration::ZERO,
        });
        let responses = async {
            let from_server = from_server.take(self.cut_after.unwrap_or(u64::MAX));
            let copying = self.copy(from_server, to_client, |fault| match fault {
                Fault::Delay { to_client, .. } => to_client,
                _ => Duration::ZERO,
            });
            copying.await?;
            match self.cut_after {
                Some(_) => Err(io::ErrorKind::ConnectionAborted.into()),
                None => Ok(()),
            }
        };
        tokio::try_join!(requests, responses).map(drop)
    }

    /// Copies bytes and their end. Reading continues while earlier bytes are delayed or held back.
    async fn copy(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        delay: fn(Fault) -> Duration,
    ) -> io::Result<()> {
        let (queue, mut queued) = mpsc::channel(QUEUED_CHUNKS);
        let reading = async {
            loop {
                let mut bytes = vec![0; CHUNK_BYTES];
                let read = from.read(&mut bytes).await;
                if read.is_err() {
                    // A reset is not forwarded during silence either.
                    self.wait_until_forwarding().await?;
                }
                bytes.truncate(read?);
                let is_end = bytes.is_empty();
                let fault = self.state.borrow().fault;
                let time = Instant::now() + delay(fault);
                // Not read ahead, so that the sender notices the limit.
                if let Fault::Limit { bytes_per_s } = fault {
                    let nanos = bytes.len() as u64 * 1_000_000_000 / u64::from(bytes_per_s.max(1));
                    tokio::time::sleep(Duration::from_nanos(nanos)).await;
                }
                if queue.send((time, bytes)).await.is_err() || is_end {
                    return Ok(());
                }
            }
        };
        let writing = async {
            while let Some((time, bytes)) = queued.recv().await {
                tokio::time::sleep_until(time).await;
                self.wait_until_forwarding().await?;
                if bytes.is_empty() {
                    return to.shutdown().await;
                }
                to.write_all(&bytes).await?;
            }
            Ok(())
        };
        tokio::try_join!(reading, writing).map(drop)
    }

    async fn wait_until_forwarding(&self) -> io::Result<()> {
        let mut state = self.state.clone();
        let forwarding =
            state.wait_for(|now| now.fault != Fault::Silence && self.epoch >= now.silent_before);
        let dropped = |_| io::ErrorKind::ConnectionAborted.into();
        forwarding.await.map(drop).map_err(dropped)
    }

    async fn wait_for_end(&self) -> End {
        let is_reset = |now: &State| self.epoch < now.reset_before;
        let mut state = self.state.clone();
        let ended = state.wait_for(|now| is_reset(now) || now.fault == Fault::Refuse);
        match ended.await {
            Ok(now) if is_reset(&now) => End::Reset,
            // An error means that the proxy was dropped.
            _ => End::Close,
        }
    }
}

impl End {
    fn apply(&self, streams: &[&TcpStream]) -> io::Result<()> {
        if *self == Self::Reset {
            for stream in streams {
                stream.set_zero_linger()?;
            }
        }
        Ok(())
    }
}
