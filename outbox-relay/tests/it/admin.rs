//! The limits of the admin port.

use anyhow::Result;
use devstack::WAIT_TIMEOUT;
use outbox_relay::config::SinkKind;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use crate::harness::Setup;

/// Several times the limit of open connections.
const IDLE_CONNECTIONS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed_and_do_not_block_probes() -> Result<()> {
    let setup = Setup::new("idle_connections", SinkKind::Kafka).await?;
    let relay = setup.start().await?;
    let mut idle = Vec::new();
    for _ in 0..IDLE_CONNECTIONS {
        idle.push(TcpStream::connect(relay.admin_addr).await?);
    }
    relay.wait_for_readiness(200).await?;
    for connection in &mut idle {
        // Closed or reset.
        let read = timeout(WAIT_TIMEOUT, connection.read_u8()).await?;
        assert!(read.is_err(), "{read:?}");
    }
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}
