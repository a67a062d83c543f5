use std::{io, time::Duration};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

/// The forwarding mode of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Without delay.
    Open,
    /// With this delay in each direction.
    Slow(Duration),
    /// Closes all connections and accepts no new ones.
    Closed,
}

/// A TCP proxy to a server that can be slowed down and closed.
#[derive(Debug)]
pub(super) struct Proxy {
    listener: TcpListener,
    mode: watch::Receiver<Mode>,
}

impl Proxy {
    pub(super) async fn bind() -> Result<(Self, watch::Sender<Mode>)> {
        let (control, mode) = watch::channel(Mode::Open);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok((Self { listener, mode }, control))
    }

    pub(super) fn addr(&self) -> Result<String> {
        Ok(self.listener.local_addr()?.to_string())
    }

    /// Forwards connections to `server` until the future is dropped.
    pub(super) async fn forward_to(self, server: String) -> io::Result<()> {
        loop {
            let (client, _) = self.listener.accept().await?;
            let (mode, server) = (self.mode.clone(), server.clone());
            tokio::spawn(async move {
                if *mode.borrow() != Mode::Closed {
                    let _ = connect(client, &server, mode).await;
                }
            });
        }
    }
}

async fn connect(
    client: TcpStream,
    server: &str,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let current = mode.clone();
    tokio::select! {
        result = forward_bytes(from_client, to_server, current.clone()) => result,
        result = forward_bytes(from_server, to_client, current) => result,
        _ = mode.wait_for(|mode| *mode == Mode::Closed) => Ok(()),
    }
}

/// Copies bytes with the current delay. Reading continues while earlier bytes are delayed.
async fn forward_bytes(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let (delayed, mut pending) = tokio::sync::mpsc::channel(1_000);
    let reading = async {
        loop {
            let mut bytes = vec![0; 16 * 1024];
            let count = from.read(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            bytes.truncate(count);
            let delay = match *mode.borrow() {
                Mode::Slow(delay) => delay,
                _ => Duration::ZERO,
            };
            if delayed
                .send((tokio::time::Instant::now() + delay, bytes))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
    };
    let writing = async {
        while let Some((time, bytes)) = pending.recv().await {
            tokio::time::sleep_until(time).await;
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::select! { result = reading => result, result = writing => result }
}
