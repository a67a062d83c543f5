//! Limits the connections to the admin port, so that file descriptors remain for Postgres and Kafka.

use std::{collections::VecDeque, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown, service::TowerToHyperService};
use tokio::{net::TcpListener, task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// The most open connections. A new one closes the oldest, so that idle clients do not block a probe.
const MAX_CONNECTIONS: usize = 64;
/// The longest life of a connection. Every response is available at once, and a longer connection is idle or slow.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves requests until `shutdown`, and finishes those in progress.
pub(super) async fn serve(mut listener: TcpListener, app: Router, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    // The oldest first.
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    // axum's `accept` continues after an error.
    while let Some((stream, _)) =
        (shutdown.run_until_cancelled(Listener::accept(&mut listener))).await
    {
        open.retain(|connection| !connection.is_finished());
        if open.len() == MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(app.clone());
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let connection = timeout(CONNECTION_TIMEOUT, graceful.watch(connection));
        open.push_back(tokio::spawn(connection).abort_handle());
    }
    drop(listener);
    graceful.shutdown().await;
}
