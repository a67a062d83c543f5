//! A Postgres proxy that silently drops all traffic of a connection after a certain statement.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result};
use devstack::eventually;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

/// A proxy in front of a Postgres.
pub(crate) struct SilentProxy {
    url: String,
    is_transparent: Arc<AtomicBool>,
    has_triggered: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl SilentProxy {
    /// Starts a proxy for this database. After a client sends `trigger`, nothing is forwarded on its connection, in
    /// either direction.
    pub(crate) async fn start(database_url: &str, trigger: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (user, place) = database_url.rsplit_once('@').context("a URL with a user")?;
        let (server, name) = place.split_once('/').context("a URL with a database")?;
        let url = format!("{user}@{}/{name}", listener.local_addr()?);
        let is_transparent = Arc::new(AtomicBool::new(false));
        let has_triggered = Arc::new(AtomicBool::new(false));
        let (server, transparent, triggered) = (
            server.to_owned(),
            Arc::clone(&is_transparent),
            Arc::clone(&has_triggered),
        );
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = server.clone();
                let trigger = (!transparent.load(Ordering::Acquire)).then_some(trigger.as_bytes());
                let triggered = Arc::clone(&triggered);
                tokio::spawn(async move {
                    // An error means that one side closed the connection.
                    let _ = forward(client, &server, trigger, &triggered).await;
                });
            }
        });
        Ok(Self {
            url,
            is_transparent,
            has_triggered,
            accepting,
        })
    }

    /// Waits until a client has sent the trigger.
    pub(crate) async fn wait_until_triggered(&self) -> Result<()> {
        let triggered = async || Ok(self.has_triggered.load(Ordering::Acquire).then_some(()));
        eventually("the trigger was sent", triggered).await
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Forwards everything on new connections.
    pub(crate) fn make_transparent(&self) {
        self.is_transparent.store(true, Ordering::Release);
    }
}

impl Drop for SilentProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(
    client: TcpStream,
    server: &str,
    trigger: Option<&[u8]>,
    triggered: &AtomicBool,
) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let is_silent = AtomicBool::new(false);
    tokio::try_join!(
        copy(from_client, to_server, &is_silent, trigger, triggered),
        copy(from_server, to_client, &is_silent, None, triggered),
    )?;
    Ok(())
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_silent: &AtomicBool,
    trigger: Option<&[u8]>,
    triggered: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            if is_silent.load(Ordering::Acquire) {
                // The close is not forwarded either.
                std::future::pending::<()>().await;
            }
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let sent = &buffer[..length];
        let has_trigger = trigger
            .is_some_and(|trigger| sent.windows(trigger.len()).any(|window| window == trigger));
        if has_trigger {
            is_silent.store(true, Ordering::Release);
            triggered.store(true, Ordering::Release);
        }
        if !is_silent.load(Ordering::Acquire) {
            to.write_all(sent).await?;
        }
    }
}
