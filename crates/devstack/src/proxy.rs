use std::{io, net::SocketAddr, ops::Range, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::Instant,
};

use crate::ports::free_port;

const CHUNK_BYTES: usize = 16 * 1024;
/// The limit on delayed or silenced chunks per direction. Reading stops when it is reached.
const QUEUED_CHUNKS: usize = 1_000;

/// A fault that a [`Proxy`] injects into all of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Delays the bytes of each direction.
    Delay {
        to_server: Duration,
        to_client: Duration,
    },
    /// Accepts connections and bytes, but forwards nothing in either direction, not even the end of a connection. The next
    /// fault forwards what was held back, as TCP does after a network partition.
    Silence,
    /// Closes open connections and refuses new ones, as a server that is down.
    Refuse,
    /// Closes each new connection after this many bytes from the server.
    CutAfter(u64),
}

/// A TCP proxy that injects faults between a client and a server. Dropping it closes all connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    is_listening: watch::Receiver<bool>,
}

impl Proxy {
    /// Starts a proxy to `target`, a `host:port`, on a free loopback port.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn start(target: &str) -> Result<Self> {
        let proxy = Self::bind().await?;
        proxy.set_target(target);
        Ok(proxy)
    }

    /// Starts a proxy to the server of a URL such as `postgres://user:password@host:port/database`.
    ///
    /// # Errors
    /// If the URL has no host, or no port can be bound.
    pub async fn start_for(url: &str) -> Result<Self> {
        Self::start(&url[address_in(url)?]).await
    }

    /// Starts a proxy that closes connections until [`set_target`](Self::set_target).
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn bind() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", free_port()?))
            .await
            .context("failed to bind a port for the proxy")?;
        let address = listener.local_addr()?;
        let (state, current) = watch::channel(State::default());
        let (listening, is_listening) = watch::channel(true);
        tokio::spawn(async move {
            if let Err(err) = serve(listener, current, listening).await {
                tracing::warn!(%address, error = %err, "proxy stopped");
            }
        });
        Ok(Self {
            address,
            state,
            is_listening,
        })
    }

    /// The address for clients, as `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Replaces host and port of a URL by those of the proxy.
    ///
    /// # Errors
    /// If the URL has no host.
    pub fn url(&self, url: &str) -> Result<String> {
        let mut proxied = url.to_owned();
        proxied.replace_range(address_in(url)?, &self.address());
        Ok(proxied)
    }

    /// Injects a fault into all connections, in place of the previous one. It is in effect when this returns.
    ///
    /// # Errors
    /// If the proxy has stopped, because another process took its port while it refused connections.
    pub async fn set(&self, fault: Fault) -> Result<()> {
        self.state.send_modify(|state| state.fault = fault);
        let listens = fault != Fault::Refuse;
        let mut is_listening = self.is_listening.clone();
        let applied = is_listening.wait_for(|now| *now == listens).await;
        applied.map(drop).context("the proxy has stopped")
    }

    /// Silences the connections that are open now, permanently; new ones are not affected. This is what clients see of a
    /// failover of an address, or of a firewall that drops its state.
    pub fn silence_open_connections(&self) {
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.silent_before = state.epoch;
        });
    }

    /// Resets the connections that are open now, on both sides.
    pub fn reset_open_connections(&self) {
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.reset_before = state.epoch;
        });
    }

    /// Forwards new connections to another `host:port`.
    pub fn set_target(&self, target: &str) {
        self.state
            .send_modify(|state| target.clone_into(&mut state.target));
    }
}

/// Returns the position of `host:port` in a URL.
fn address_in(url: &str) -> Result<Range<usize>> {
    let scheme_end = url.find("://").context("a URL has a scheme")? + 3;
    let end = url[scheme_end..]
        .find(['/', '?'])
        .map_or(url.len(), |length| scheme_end + length);
    let start = url[..end].rfind('@').map_or(scheme_end, |at| at + 1);
    Ok(start..end)
}

#[derive(Clone, Debug)]
struct State {
    target: String,
    fault: Fault,
    /// The epoch of new connections. It separates them from those that are open now.
    epoch: u64,
    /// Connections of earlier epochs are silent.
    silent_before: u64,
    /// Connections of earlier epochs are reset.
    reset_before: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            target: String::new(),
            fault: Fault::None,
            epoch: 0,
            silent_before: 0,
            reset_before: 0,
        }
    }
}

/// Accepts connections until the proxy is dropped. While it refuses connections, nothing listens on the port.
async fn serve(
    mut listener: TcpListener,
    mut state: watch::Receiver<State>,
    is_listening: watch::Sender<bool>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let accepted = state.clone();
    loop {
        is_listening.send_replace(true);
        let refuses = state.wait_for(|state| state.fault == Fault::Refuse);
        let is_dropped = tokio::select! {
            accepting = accept(&listener, &accepted) => return accepting,
            refuses = refuses => refuses.is_err(),
        };
        drop(listener);
        is_listening.send_replace(false);
        let listens = state.wait_for(|state| state.fault != Fault::Refuse);
        if is_dropped || listens.await.is_err() {
            return Ok(());
        }
        listener = TcpListener::bind(address).await?;
    }
}

async fn accept(listener: &TcpListener, state: &watch::Receiver<State>) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        let connection = Connection::new(state.clone());
        tokio::spawn(async move {
            if let Err(err) = connection.run(client).await {
                tracing::debug!(error = %err, "proxied connection failed");
            }
        });
    }
}

struct Connection {
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
    fn new(state: watch::Receiver<State>) -> Self {
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

    async fn run(&self, mut client: TcpStream) -> io::Result<()> {
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
                let time = Instant::now() + delay(self.state.borrow().fault);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_found_in_urls() -> Result<()> {
        for url in [
            "postgres://db:5432/users",
            "postgres://user:p@ss@db:5432/users?sslmode=disable",
            "postgres://user@db:5432?application_name=a/b@c",
            "http://db:5432",
        ] {
            assert_eq!(&url[address_in(url)?], "db:5432", "{url}");
        }
        assert!(address_in("db:5432").is_err());
        Ok(())
    }
}
