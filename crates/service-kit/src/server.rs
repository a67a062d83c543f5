use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Args;
use cli::{milliseconds, number};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_web::GrpcWebLayer;

use crate::{
    connections::{ConnectionLimits, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, accept_connections},
    cors::{Origins, cors_layer, parse_origins},
    deadline::CallLayer,
    health::{Checks, monitor_health, report_not_serving},
    idempotency,
};

/// Concurrent calls per connection; a client with more opens another connection.
const MAX_CONCURRENT_STREAMS: u32 = 1_024;
/// Well above what clients send, and small enough to bound memory.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Limits the age of connections, so that clients reconnect and spread over new replicas.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);

/// The listener and the limits of the server.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// Listen on this address, for example 0.0.0.0:50051; port 0 selects a free port, which is logged
    #[arg(long, env = "LISTEN_ADDR", value_parser = parse_listen_addr)]
    listen_addr: SocketAddr,
    /// Keep at most this many connections open. A further one replaces the one that has been idle (without a call in
    /// progress) for longest and for at least 2 seconds, or waits in the listener's backlog if there is none. Each open
    /// connection uses a file descriptor: keep it below the limit of the process
    #[arg(long, env = "MAX_CONNECTIONS", default_value = "10000", value_parser = number(1..=1_000_000_usize))]
    max_connections: usize,
    /// Keep at most this many connections of one client address open (IPv6: of one /64 network); by default half of
    /// MAX_CONNECTIONS. A further one replaces an idle one of this address, or is closed. Set it to MAX_CONNECTIONS
    /// behind a load balancer or NAT that hides the addresses of clients
    #[arg(long, env = "MAX_CONNECTIONS_PER_PEER", value_parser = number(1..=1_000_000_usize))]
    max_connections_per_peer: Option<usize>,
    /// Fail a call with DEADLINE_EXCEEDED after this many milliseconds; callers can set shorter deadlines
    #[arg(long, env = "MAX_DEADLINE_MS", default_value = "10000", value_parser = milliseconds(1..=600_000))]
    max_deadline_ms: Duration,
    /// Let calls in flight continue for this many milliseconds after SIGTERM; keep it below the orchestrator's
    /// termination grace period
    #[arg(long, env = "DRAIN_TIMEOUT_MS", default_value = "10000", value_parser = milliseconds(0..=600_000))]
    drain_timeout_ms: Duration,
    /// Allow web pages from these origins to call by gRPC-Web: scheme://host, comma-separated, or * for any;
    /// by default none
    #[arg(long, env = "GRPC_WEB_ORIGINS", default_value = "", hide_default_value = true, value_parser = parse_origins)]
    grpc_web_origins: Origins,
}

impl ServerOptions {
    fn connection_limits(&self) -> ConnectionLimits {
        let total = self.max_connections;
        let per_peer = self.max_connections_per_peer;
        ConnectionLimits {
            total,
            per_peer: per_peer.unwrap_or(total.div_ceil(2)),
        }
    }
}

fn parse_listen_addr(text: &str) -> Result<SocketAddr, String> {
    let reason = |_| format!("invalid address {text:?}: must look like 0.0.0.0:50051");
    text.parse().map_err(reason)
}

/// A gRPC service and its background dependencies.
pub struct Service<P> {
    /// The service's name in error details.
    pub domain: &'static str,
    /// The gRPC methods.
    pub routes: Routes,
    /// An encoded `FileDescriptorSet`, for server reflection.
    pub descriptors: &'static [u8],
    /// The health checks.
    pub checks: Checks<P>,
    /// The detached tasks, which continue after their callers have disconnected.
    pub detached_tasks: TaskTracker,
}

/// A gRPC server that is bound but not yet serving.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    options: ServerOptions,
}

impl Server {
    /// Binds the listen address.
    ///
    /// # Errors
    /// If the address can't be bound.
    pub async fn bind(options: ServerOptions) -> std::io::Result<Self> {
        let listener = TcpListener::bind(options.listen_addr)
            .await
            .map_err(|err| {
                std::io::Error::new(
                    err.kind(),
                    format!("failed to listen on {}: {err}", options.listen_addr),
                )
            })?;
        Ok(Self {
            local_addr: listener.local_addr()?,
            listener,
            options,
        })
    }

    /// Returns the bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves `service`, health and reflection until `shutdown`, then drains: calls in flight and
    /// detached tasks have the drain timeout to finish. Also deletes expired stored responses.
    ///
    /// # Errors
    /// If the descriptors are invalid, or the listener fails.
    pub async fn serve<P>(
        self,
        service: Service<P>,
        shutdown: CancellationToken,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        P: Fn() -> Result<(), String> + Send + 'static,
    {
        let Service {
            domain,
            routes,
            descriptors,
            checks,
            detached_tasks,
        } = service;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // Lets clients with reflection, such as grpcurl, decode error details.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
                .with_service_name(checks.service)
                .with_service_name("grpc.health.v1.Health")
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        report_not_serving(&reporter, checks.service).await;
        let routes = routes
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        tokio::spawn(idempotency::delete_expired_responses(
            checks.pool.clone(),
            shutdown.clone(),
        ));
        let health_monitor = tokio::spawn(monitor_health(reporter, checks, shutdown.clone()));
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_connection_age(MAX_CONNECTION_AGE)
            // gRPC-Web also uses HTTP/1.1.
            .accept_http1(true)
            .layer(cors_layer(&self.options.grpc_web_origins))
            .layer(GrpcWebLayer::new())
            .layer(CallLayer {
                domain,
                max_deadline: self.options.max_deadline_ms,
            })
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                accept_connections(self.listener, self.options.connection_limits()),
                shutdown.clone().cancelled_owned(),
            );
        tracing::info!(address = %self.local_addr, "listening");
        let drain_timeout = async {
            shutdown.cancelled().await;
            tokio::time::sleep(self.options.drain_timeout_ms).await;
        };
        let serving = async {
            serving.await?;
            detached_tasks.close();
            detached_tasks.wait().await;
            Ok::<_, tonic::transport::Error>(())
        };
        tokio::select! {
            result = serving => result?,
            // tonic waits for open connections without a limit.
            () = drain_timeout => tracing::warn!("drain timeout passed with calls still in flight"),
        }
        health_monitor.await?;
        Ok(())
    }
}

/// Options of `healthcheck`.
#[derive(Args, Clone, Debug)]
pub struct HealthcheckOptions {
    /// Query the server at this address, for example 0.0.0.0:50051, which is queried on the loopback
    #[arg(long, env = "LISTEN_ADDR")]
    listen_addr: String,
    /// Query this part: empty for everything (the default), "projection", or the full name of the gRPC service
    #[arg(long, default_value = "")]
    service: String,
}

impl HealthcheckOptions {
    /// Queries the health of a running server, for container health checks.
    pub async fn run(self) -> ExitCode {
        match self.query_status().await {
            Ok(ServingStatus::Serving) => ExitCode::SUCCESS,
            Ok(status) => {
                eprintln!("{}", status.as_str_name());
                ExitCode::FAILURE
            }
            Err(err) => {
                eprintln!("failed to query the health of {}: {err}", self.listen_addr);
                ExitCode::FAILURE
            }
        }
    }

    async fn query_status(
        &self,
    ) -> Result<ServingStatus, Box<dyn std::error::Error + Send + Sync>> {
        // A server that listens on every address is queried on the loopback.
        let address = self
            .listen_addr
            .replace("0.0.0.0:", "127.0.0.1:")
            .replace("[::]:", "[::1]:");
        let channel = Endpoint::try_from(format!("http://{address}"))?
            .timeout(Duration::from_secs(3))
            .connect_timeout(Duration::from_secs(3))
            .connect()
            .await?;
        let request = HealthCheckRequest {
            service: self.service.clone(),
        };
        let status = HealthClient::new(channel)
            .check(request)
            .await?
            .into_inner()
            .status();
        Ok(status)
    }
}
