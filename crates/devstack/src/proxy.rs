mod connection;

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{net::TcpListener, sync::watch};

use self::connection::Connection;
use crate::{
    ports::free_port,
    url::{address_of, with_address},
};

/// A fault that a [`Proxy`] injects into all of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Delays the bytes of each direction.
    Delay {
        to_server: Duration,
        to_client: Duration,
    },
    /// Limits the bytes per second of each direction of a connection.
    Limit {
        bytes_per_s: u32,
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
        Self::start(address_of(url)?).await
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
        with_address(url, &self.address())
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
