use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use devstack::{Fault, Proxy, WAIT_TIMEOUT};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// How long a silent connection is read. Too short a time hides a failure, but causes none.
const SILENCE: Duration = Duration::from_millis(200);

/// Starts a server that prepends `prefix` to each connection and echoes what it receives.
async fn start_echo(prefix: &'static str) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(prefix.as_bytes()).await?;
                let (mut reading, mut writing) = stream.split();
                tokio::io::copy(&mut reading, &mut writing).await?;
                writing.shutdown().await
            });
        }
    });
    Ok(address)
}

async fn connect(proxy: &Proxy) -> Result<TcpStream> {
    Ok(TcpStream::connect(proxy.address()).await?)
}

async fn read_text(stream: &mut TcpStream, length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    let reading = stream.read_exact(&mut bytes);
    timeout(WAIT_TIMEOUT, reading).await.context("no bytes")??;
    Ok(String::from_utf8(bytes)?)
}

async fn read_to_end(stream: &mut TcpStream) -> Result<String> {
    let mut text = String::new();
    let reading = stream.read_to_string(&mut text);
    timeout(WAIT_TIMEOUT, reading).await.context("no end")??;
    Ok(text)
}

async fn assert_echoes(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).await?;
    assert_eq!(read_text(stream, text.len()).await?, text);
    Ok(())
}

async fn assert_silent(stream: &mut TcpStream) {
    let read = timeout(SILENCE, stream.read_u8()).await;
    assert!(read.is_err(), "not silent: {read:?}");
}

#[tokio::test]
async fn bytes_and_the_end_of_a_direction_are_forwarded() -> Result<()> {
    let proxy = Proxy::start(&start_echo("").await?).await?;
    let mut client = connect(&proxy).await?;
    assert_echoes(&mut client, "hello").await?;
    client.write_all(b"last").await?;
    client.shutdown().await?;
    assert_eq!(read_to_end(&mut client).await?, "last");
    Ok(())
}

#[tokio::test]
async fn each_direction_has_its_own_delay() -> Result<()> {
    let proxy = Proxy::start(&start_echo("").await?).await?;
    let mut client = connect(&proxy).await?;
    let (to_server, to_client) = (Duration::from_millis(100), Duration::from_millis(50));
    let faults = [
        (to_server, Duration::ZERO),
        (Duration::ZERO, to_client),
        (to_server, to_client),
    ];
    for (to_server, to_client) in faults {
        let fault = Fault::Delay {
            to_server,
            to_client,
        };
        proxy.set(fault).await?;
        let started = Instant::now();
        assert_echoes(&mut client, "slow").await?;
        let (elapsed, delay) = (started.elapsed(), to_server + to_client);
        assert!(elapsed >= delay, "{elapsed:?} with {fault:?}");
    }
    Ok(())
}

#[tokio::test]
async fn silence_holds_bytes_of_open_and_new_connections_back() -> Result<()> {
    let proxy = Proxy::start(&start_echo("").await?).await?;
    let mut open = connect(&proxy).await?;
    assert_echoes(&mut open, "before").await?;
    proxy.set(Fault::Silence).await?;
    let mut new = connect(&proxy).await?;
    for client in [&mut open, &mut new] {
        client.write_all(b"held").await?;
        assert_silent(client).await;
    }
    proxy.set(Fault::None).await?;
    for client in [&mut open, &mut new] {
        assert_eq!(read_text(client, 4).await?, "held");
    }
    Ok(())
}

#[tokio::test]
async fn silenced_connections_stay_open_and_new_ones_work() -> Result<()> {
    let proxy = Proxy::start(&start_echo("").await?).await?;
    let mut open = connect(&proxy).await?;
    assert_echoes(&mut open, "before").await?;
    proxy.silence_open_connections();
    open.write_all(b"lost").await?;
    let mut new = connect(&proxy).await?;
    assert_echoes(&mut new, "new").await?;
    assert_silent(&mut open).await;
    proxy.set(Fault::None).await?;
    assert_silent(&mut open).await;
    Ok(())
}

#[tokio::test]
async fn the_end_of_a_silenced_connection_is_not_forwarded() -> Result<()> {
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(&server.local_addr()?.to_string()).await?;
    let client = connect(&proxy).await?;
    let (mut accepted, _) = server.accept().await?;
    proxy.silence_open_connections();
    // A reset; a graceful end waits behind the bytes before it.
    client.set_zero_linger()?;
    drop(client);
    assert_silent(&mut accepted).await;
    Ok(())
}

#[tokio::test]
async fn open_connections_are_reset_on_both_sides() -> Result<()> {
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(&server.local_addr()?.to_string()).await?;
    let mut client = connect(&proxy).await?;
    let (mut accepted, _) = server.accept().await?;
    accepted.write_all(b"old").await?;
    assert_eq!(read_text(&mut client, 3).await?, "old");
    proxy.reset_open_connections();
    for stream in [&mut client, &mut accepted] {
        let read = timeout(WAIT_TIMEOUT, stream.read_u8()).await?;
        assert_eq!(
            read.map_err(|err| err.kind()),
            Err(ErrorKind::ConnectionReset)
        );
    }
    client = connect(&proxy).await?;
    let (mut accepted, _) = server.accept().await?;
    accepted.write_all(b"new").await?;
    assert_eq!(read_text(&mut client, 3).await?, "new");
    Ok(())
}

#[tokio::test]
async fn connections_are_closed_and_refused_until_the_fault_ends() -> Result<()> {
    let proxy = Proxy::start(&start_echo("").await?).await?;
    let mut open = connect(&proxy).await?;
    assert_echoes(&mut open, "before").await?;
    for _ in 0..2 {
        proxy.set(Fault::Refuse).await?;
        assert_eq!(read_to_end(&mut open).await?, "");
        let refused = TcpStream::connect(proxy.address()).await;
        let refused = refused.map(drop).map_err(|err| err.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
        proxy.set(Fault::None).await?;
        open = connect(&proxy).await?;
        assert_echoes(&mut open, "again").await?;
    }
    Ok(())
}

#[tokio::test]
async fn new_connections_are_cut_after_some_bytes_from_the_server() -> Result<()> {
    let proxy = Proxy::start(&start_echo("").await?).await?;
    let mut open = connect(&proxy).await?;
    assert_echoes(&mut open, "before").await?;
    proxy.set(Fault::CutAfter(3)).await?;
    let mut new = connect(&proxy).await?;
    new.write_all(b"abc").await?;
    assert_eq!(read_to_end(&mut new).await?, "abc");
    let mut new = connect(&proxy).await?;
    new.write_all(b"abcdef").await?;
    assert_eq!(read_to_end(&mut new).await?, "abc");
    assert_echoes(&mut open, "not cut").await
}

#[tokio::test]
async fn a_cut_ends_the_connection_on_both_sides() -> Result<()> {
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(&server.local_addr()?.to_string()).await?;
    proxy.set(Fault::CutAfter(2)).await?;
    let mut client = connect(&proxy).await?;
    let (mut accepted, _) = server.accept().await?;
    accepted.write_all(b"abc").await?;
    assert_eq!(read_to_end(&mut client).await?, "ab");
    let read = timeout(WAIT_TIMEOUT, accepted.read_u8()).await?;
    assert!(read.is_err(), "{read:?}");
    Ok(())
}

#[tokio::test]
async fn new_connections_go_to_the_new_target() -> Result<()> {
    let proxy = Proxy::start(&start_echo("1").await?).await?;
    let mut open = connect(&proxy).await?;
    assert_eq!(read_text(&mut open, 1).await?, "1");
    proxy.set_target(&start_echo("2").await?);
    let mut new = connect(&proxy).await?;
    assert_eq!(read_text(&mut new, 1).await?, "2");
    assert_echoes(&mut open, "old target").await
}

#[tokio::test]
async fn a_dropped_proxy_ends_open_and_silent_connections() -> Result<()> {
    let proxy = Proxy::start(&start_echo("").await?).await?;
    let mut silent = connect(&proxy).await?;
    assert_echoes(&mut silent, "before").await?;
    proxy.silence_open_connections();
    let mut open = connect(&proxy).await?;
    assert_echoes(&mut open, "before").await?;
    drop(proxy);
    assert_eq!(read_to_end(&mut silent).await?, "");
    assert_eq!(read_to_end(&mut open).await?, "");
    Ok(())
}
