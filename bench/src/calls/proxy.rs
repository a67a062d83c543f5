use std::{io, time::Duration};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

/// How the way to a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As it should be.
    Open,
    /// Whatever is sent arrives so much later, in either direction.
    Slow(Duration),
    /// There is no connection, and none is made.
    Closed,
}

/// A way to a server that can be made slow, and closed.
#[derive(Debug)]
pub(super) struct Proxy {
    listener: TcpListener,
    way: watch::Receiver<Way>,
}

impl Proxy {
    pub(super) async fn bind() -> Result<(Self, watch::Sender<Way>)> {
        let (control, way) = watch::channel(Way::Open);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok((Self { listener, way }, control))
    }

    pub(super) fn addr(&self) -> Result<String> {
        Ok(self.listener.local_addr()?.to_string())
    }

    /// Leads to `server`, until it is dropped.
    pub(super) async fn lead_to(self, server: String) -> io::Result<()> {
        loop {
            let (client, _) = self.listener.accept().await?;
            let (way, server) = (self.way.clone(), server.clone());
            tokio::spawn(async move {
                if *way.borrow() != Way::Closed {
                    let _ = connect(client, &server, way).await;
                }
            });
        }
    }
}

async fn connect(client: TcpStream, server: &str, mut way: watch::Receiver<Way>) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let closed = way.clone();
    tokio::select! {
        result = pass_on(from_client, to_server, closed.clone()) => result,
        result = pass_on(from_server, to_client, closed) => result,
        _ = way.wait_for(|way| *way == Way::Closed) => Ok(()),
    }
}

/// Hands bytes on, each as late as it has to be: what comes meanwhile does not wait for it.
async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: watch::Receiver<Way>,
) -> io::Result<()> {
    let (late, mut due) = tokio::sync::mpsc::channel(1_000);
    let reading = async {
        loop {
            let mut bytes = vec![0; 16 * 1024];
            let count = from.read(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            bytes.truncate(count);
            let delay = match *way.borrow() {
                Way::Slow(delay) => delay,
                _ => Duration::ZERO,
            };
            if late
                .send((tokio::time::Instant::now() + delay, bytes))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
    };
    let writing = async {
        while let Some((time, bytes)) = due.recv().await {
            tokio::time::sleep_until(time).await;
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::select! { result = reading => result, result = writing => result }
}
