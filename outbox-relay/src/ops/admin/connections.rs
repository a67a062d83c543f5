//! The connections to the admin port: never so many that none is left for Postgres and Kafka.

use std::{collections::VecDeque, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown, service::TowerToHyperService};
use tokio::{net::TcpListener, task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Connections that may be open at once. The oldest makes way for a new one, so that a probe is
/// answered whoever holds the others.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may be open. Every answer is there at once; what stays longer says nothing,
/// or takes its time to.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers requests until `shutdown`, and then those that have come.
pub(super) async fn serve(mut listener: TcpListener, app: Router, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    // The oldest first.
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    // axum's `accept` goes on after an error.
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
