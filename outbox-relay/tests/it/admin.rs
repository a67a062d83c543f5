//! The admin port, and those who hold it.

use anyhow::Result;
use devstack::PATIENCE;
use outbox_relay::config::SinkKind;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use crate::publishing::Setup;

/// Several times as many as are held open.
const IDLE_CONNECTIONS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_keep_no_probe_out_and_are_ended() -> Result<()> {
    let setup = Setup::new("idle_connections", SinkKind::Kafka).await?;
    let relay = setup.start().await?;
    let mut idle = Vec::new();
    for _ in 0..IDLE_CONNECTIONS {
        idle.push(TcpStream::connect(relay.admin_addr).await?);
    }
    relay.wait_for_readiness(200).await?;
    for connection in &mut idle {
        // Closed, or reset.
        let ended = timeout(PATIENCE, connection.read_u8()).await?;
        assert!(ended.is_err(), "{ended:?}");
    }
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}
