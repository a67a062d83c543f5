//! The admin server of a running relay, and its client.

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
/// Bounds the memory for the response of an unknown server.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// Serves `/livez`, `/readyz`, `/status`, `/metrics` and the page `/` until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    sources: Vec<SharedStatus>,
    shutdown: CancellationToken,
) {
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/", get(page::page))
        .with_state(Arc::new(sources));
    connections::serve(listener, app, shutdown).await;
}

async fn readyz(State(sources): State<Arc<Vec<SharedStatus>>>) -> (StatusCode, String) {
    let mut code = StatusCode::OK;
    let mut lines = String::new();
    for source in sources.iter().map(SharedStatus::view) {
        if !source.ready {
            code = StatusCode::SERVICE_UNAVAILABLE;
        }
        let mut line = format!("{}: {}", source.source, source.state.name());
        for (separator, text) in [
            (", the leader is ", source.leader.as_deref()),
            (": ", source.error.as_deref()),
            (". Hint: ", source.hint),
        ] {
            if let Some(text) = text {
                line = line + separator + text;
            }
        }
        for Warning { message, hint, .. } in &source.warnings {
            line.truncate(line.trim_end_matches('.').len());
            line = line + "; degraded: " + message + ". Hint: " + hint;
        }
        // The message of a server or a driver can have several lines, and the text of a row any characters.
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

/// Requests `path` from a running relay. Returns the status code and the body.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    // An unspecified address is not a target; such a relay also listens on the loopback.
    let mut target = address;
    if address.ip().is_unspecified() {
        target.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let request = async {
        let response = client
            .get(format!("http://{target}{path}").parse()?)
            .await?;
        let code = response.status().as_u16();
        let body = to_bytes(Body::new(response.into_body()), MAX_RESPONSE_BYTES).await?;
        anyhow::Ok((code, String::from_utf8(body.into())?))
    };
    tokio::time::timeout(CLIENT_TIMEOUT, request)
        .await
        .with_context(|| format!("no response within {CLIENT_TIMEOUT:?}"))?
        .map_err(|err: anyhow::Error| {
            anyhow::anyhow!(
                "no relay responds at {address}: {err:#}. Hint: Start it with `outbox-relay run`, or set admin_addr to the \
                 address of the running relay."
            )
        })
}
