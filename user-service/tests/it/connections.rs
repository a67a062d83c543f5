//! Connections: the limit, the preface timeout, and no busy loop without file descriptors.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use devstack::{WAIT_TIMEOUT, eventually, free_port};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::TestService;

async fn connect(addr: SocketAddr) -> Result<HealthClient<Channel>> {
    let endpoint = Channel::from_shared(format!("http://{addr}"))?;
    Ok(HealthClient::new(endpoint.connect().await?))
}

/// Returns true if a server on `addr` responds on a new connection.
async fn answers(addr: SocketAddr) -> Result<bool> {
    let asking = async {
        let mut client = connect(addr).await?;
        client.check(HealthCheckRequest::default()).await?;
        Ok::<_, anyhow::Error>(())
    };
    Ok(matches!(
        timeout(Duration::from_millis(500), asking).await,
        Ok(Ok(()))
    ))
}

async fn wait_for_answer(addr: SocketAddr) -> Result<()> {
    eventually("an answer", async || Ok(answers(addr).await?.then_some(()))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_closed() -> Result<()> {
    let service = TestService::start("silent").await?;
    let mut silent = TcpStream::connect(service.addr).await?;
    let spoken = timeout(WAIT_TIMEOUT, async {
        // Skip the server's first bytes; only the end of the connection matters.
        loop {
            match silent.read(&mut [0; 1024]).await {
                Ok(0) => return Ok(()),
                Err(err) if err.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Ok(_) => {}
                Err(err) => return Err(err),
            }
        }
    });
    spoken.await.context("the connection stays open")??;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_wait_until_one_is_closed() -> Result<()> {
    let service = TestService::start_with("limit", &["--max-connections=1"]).await?;
    let mut first = connect(service.addr).await?;
    first.check(HealthCheckRequest::default()).await?;
    ensure!(!answers(service.addr).await?, "a second one was taken");
    first.check(HealthCheckRequest::default()).await?;
    drop(first);
    wait_for_answer(service.addr).await?;
    service.stop().await
}

/// A service in its own process, which is killed on drop.
struct Starved(Child);

impl Drop for Starved {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Starved {
    /// Starts a service with a low file descriptor limit.
    async fn start() -> Result<(Self, SocketAddr)> {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let script = format!(
            "ulimit -n 48; exec {} serve",
            env!("CARGO_BIN_EXE_user-service")
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .env("LISTEN_ADDR", addr.to_string())
            .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
            .env("KAFKA_BROKERS", "127.0.0.1:1")
            .stderr(Stdio::null())
            .spawn()?;
        let starved = Self(child);
        wait_for_answer(addr).await?;
        Ok((starved, addr))
    }

    /// Returns the CPU time used so far, in ticks of 10 ms.
    fn ticks(&self) -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no name in it")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_file_descriptors_waits_for_them() -> Result<()> {
    let (starved, addr) = Starved::start().await?;
    let mut connections = Vec::new();
    for _ in 0..60 {
        connections.push(TcpStream::connect(addr).await?);
    }
    if answers(addr).await? {
        bail!("the service did not run out of descriptors");
    }
    let before = starved.ticks()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = starved.ticks()? - before;
    ensure!(
        used < 100,
        "the service used {used} ticks of 10 ms in two seconds"
    );
    drop(connections);
    wait_for_answer(addr).await
}
