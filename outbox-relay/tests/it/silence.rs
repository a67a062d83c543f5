//! A way to Postgres on which everything falls silent once a certain statement is sent.

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
    speaks: Arc<AtomicBool>,
    has_fallen_silent: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl SilentProxy {
    /// Leads to this database. A connection on which `word` is sent passes on nothing more, in either direction.
    pub(crate) async fn start(database_url: &str, word: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (user, place) = database_url.rsplit_once('@').context("a URL with a user")?;
        let (server, name) = place.split_once('/').context("a URL with a database")?;
        let url = format!("{user}@{}/{name}", listener.local_addr()?);
        let speaks = Arc::new(AtomicBool::new(false));
        let has_fallen_silent = Arc::new(AtomicBool::new(false));
        let (server, always, fell) = (
            server.to_owned(),
            Arc::clone(&speaks),
            Arc::clone(&has_fallen_silent),
        );
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = server.clone();
                let word = (!always.load(Ordering::Acquire)).then_some(word.as_bytes());
                let fell = Arc::clone(&fell);
                tokio::spawn(async move {
                    // A side that has gone ends the connection.
                    let _ = pass(client, &server, word, &fell).await;
                });
            }
        });
        Ok(Self {
            url,
            speaks,
            has_fallen_silent,
            accepting,
        })
    }

    /// Waits until the word was sent.
    pub(crate) async fn has_fallen_silent(&self) -> Result<()> {
        let fell = async || Ok(self.has_fallen_silent.load(Ordering::Acquire).then_some(()));
        eventually("silence", fell).await
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Lets new connections pass everything.
    pub(crate) fn speak(&self) {
        self.speaks.store(true, Ordering::Release);
    }
}

impl Drop for SilentProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(
    client: TcpStream,
    server: &str,
    word: Option<&[u8]>,
    fell: &AtomicBool,
) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let is_silent = AtomicBool::new(false);
    tokio::try_join!(
        copy(from_client, to_server, &is_silent, word, fell),
        copy(from_server, to_client, &is_silent, None, fell),
    )?;
    Ok(())
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_silent: &AtomicBool,
    word: Option<&[u8]>,
    fell: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            if is_silent.load(Ordering::Acquire) {
                // Nor does it pass on that the other side has gone.
                std::future::pending::<()>().await;
            }
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let sent = &buffer[..length];
        let has_word =
            word.is_some_and(|word| sent.windows(word.len()).any(|window| window == word));
        if has_word {
            is_silent.store(true, Ordering::Release);
            fell.store(true, Ordering::Release);
        }
        if !is_silent.load(Ordering::Acquire) {
            to.write_all(sent).await?;
        }
    }
}
