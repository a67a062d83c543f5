//! What probes and people ask a running relay.

mod incoming;
mod metrics;
mod page;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use program::visible;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use self::incoming::Incoming;
use crate::ops::status::{SharedStatus, View, Warning};

const CLIENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves `/livez`, `/readyz`, `/status`, `/metrics` and the page `/` until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    sources: Vec<SharedStatus>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/", get(page::page))
        .with_state(Arc::new(sources));
    axum::serve(Incoming::new(listener), app)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn ready(State(sources): State<Arc<Vec<SharedStatus>>>) -> (StatusCode, String) {
    let mut code = StatusCode::OK;
    let mut lines = String::new();
    for source in sources.iter().map(SharedStatus::view) {
        if !source.ready {
            code = StatusCode::SERVICE_UNAVAILABLE;
        }
        let mut line = format!("{}: {}", source.source, source.state.name());
        for (separator, text) in [
            (", behind ", source.leader.as_deref()),
            (": ", source.error.as_deref()),
            ("; ", source.fix),
        ] {
            if let Some(text) = text {
                line = line + separator + text;
            }
        }
        for Warning { message, hint, .. } in &source.warnings {
            line = line + ", degraded: " + message + "; " + hint;
        }
        // What a server or a driver says can have several lines, and what a row says anything.
        lines += &visible(&line.replace('\n', " "));
        lines.push('\n');
    }
    (code, lines)
}

async fn status(State(sources): State<Arc<Vec<SharedStatus>>>) -> Json<Vec<View>> {
    Json(sources.iter().map(SharedStatus::view).collect())
}

async fn metrics(State(sources): State<Arc<Vec<SharedStatus>>>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, metrics::CONTENT_TYPE)],
        metrics::text(&sources),
    )
}

/// Asks a running relay for `path`; returns the status code and the body.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let asking = async {
        // A relay that listens on every address is asked on the loopback.
        let mut address = address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(CLIENT_TIMEOUT, asking)
        .await
        .context("no answer in time")?
        .with_context(|| {
            format!(
                "no relay answers at {address}; start it with `outbox-relay run`, or give the one \
                 that runs its admin_addr here as well"
            )
        })?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("no HTTP answer")
    };
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("no HTTP status")?;
    Ok((code, body.to_owned()))
}
