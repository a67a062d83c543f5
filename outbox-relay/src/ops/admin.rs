//! What probes and people ask a running relay.

mod connections;
mod metrics;
mod page;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use cli::visible;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ops::status::{SharedStatus, View, Warning};

const CLIENT_TIMEOUT: Duration = Duration::from_secs(3);
/// Whatever listens there may send what it likes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Serves `/livez`, `/readyz`, `/status`, `/metrics` and the page `/` until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    sources: Vec<SharedStatus>,
    shutdown: CancellationToken,
) {
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/", get(page::page))
        .with_state(Arc::new(sources));
    connections::serve(listener, app, shutdown).await;
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
            ("; ", source.hint),
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
    // A relay that listens on every address is asked on the loopback.
    let mut target = address;
    if address.ip().is_unspecified() {
        target.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let asking = async {
        let answer = client
            .get(format!("http://{target}{path}").parse()?)
            .await?;
        let code = answer.status().as_u16();
        let body = to_bytes(Body::new(answer.into_body()), MAX_ANSWER_BYTES).await?;
        anyhow::Ok((code, String::from_utf8(body.into())?))
    };
    tokio::time::timeout(CLIENT_TIMEOUT, asking)
        .await
        .context("no answer in time")?
        .with_context(|| {
            format!(
                "no relay answers at {address}; start it with `outbox-relay run`, or give the one \
                 that runs its admin_addr here as well"
            )
        })
}
