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
    browsers::{self, Origins},
    deadline::CallLayer,
    health::{Checks, check_health, say_not_serving},
    idempotency,
    incoming::incoming,
};

/// Calls that one connection may have under way; a client with more opens a second one.
const MAX_CONCURRENT_STREAMS: u32 = 1_024;
/// Far above what a client sends, far below what hurts.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// A connection whose client has vanished without a word is noticed after these two.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections are renewed, so that clients spread over new replicas.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);

/// Where and how a service is reached.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen, as 0.0.0.0:50051; port 0 takes a free one, which the log tells
    #[arg(long, env = "LISTEN_ADDR", value_parser = listen_addr)]
    listen_addr: SocketAddr,
    /// Connections that may be open at once; the next ones wait until one is closed
    #[arg(long, env = "MAX_CONNECTIONS", default_value = "10000", value_parser = number(1..=1_000_000_usize))]
    max_connections: usize,
    /// How long a call may take at most, in milliseconds; callers can ask for less
    #[arg(long, env = "MAX_DEADLINE_MS", default_value = "10000", value_parser = milliseconds(1..=600_000))]
    max_deadline_ms: Duration,
    /// How long calls in flight may go on after SIGTERM, in milliseconds
    #[arg(long, env = "DRAIN_TIMEOUT_MS", default_value = "10000", value_parser = milliseconds(0..=600_000))]
    drain_timeout_ms: Duration,
    /// Origins of web pages that may call by gRPC-Web, as scheme://host, separated by commas; * for any
    #[arg(long, env = "GRPC_WEB_ORIGINS", default_value = "", hide_default_value = true, value_parser = browsers::origins)]
    grpc_web_origins: Origins,
}

fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    let reason = |_| format!("{text:?} isn't an address like 0.0.0.0:50051");
    text.parse().map_err(reason)
}

/// What a server serves.
pub struct Service<P> {
    /// Names the service in its errors.
    pub domain: &'static str,
    /// Its methods.
    pub routes: Routes,
    /// Describe it to reflection: an encoded `FileDescriptorSet`.
    pub descriptors: &'static [u8],
    /// What its health depends on.
    pub checks: Checks<P>,
    /// The writes of its calls, which go on without their callers.
    pub writes: TaskTracker,
}

/// A gRPC server that listens already and does not yet serve.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    options: ServerOptions,
}

impl Server {
    /// Takes the port.
    ///
    /// # Errors
    /// If the address can't be bound.
    pub async fn bind(options: ServerOptions) -> std::io::Result<Self> {
        let listener = TcpListener::bind(options.listen_addr)
            .await
            .map_err(|err| {
                std::io::Error::new(
                    err.kind(),
                    format!("can't listen on {}: {err}", options.listen_addr),
                )
            })?;
        Ok(Self {
            local_addr: listener.local_addr()?,
            listener,
            options,
        })
    }

    /// The address that clients can use.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves `service` until `shutdown`; calls in flight, and writes whose callers are gone, then have
    /// the drain timeout to end.
    ///
    /// Health and reflection are served beside it, and answers that need not be kept any longer
    /// are swept.
    ///
    /// # Errors
    /// If the descriptors can't be read, or the listener fails.
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
            writes,
        } = service;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // Lets clients with reflection, as grpcurl, read the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
                .with_service_name(checks.service)
                .with_service_name("grpc.health.v1.Health")
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        say_not_serving(&reporter, checks.service).await;
        let routes = routes
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        tokio::spawn(idempotency::sweep(checks.pool.clone(), shutdown.clone()));
        let checking = tokio::spawn(check_health(reporter, checks, shutdown.clone()));
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_connection_age(MAX_CONNECTION_AGE)
            // gRPC-Web comes over HTTP/1.1 as well.
            .accept_http1(true)
            .layer(browsers::cors(&self.options.grpc_web_origins))
            .layer(GrpcWebLayer::new())
            .layer(CallLayer {
                domain,
                max_deadline: self.options.max_deadline_ms,
            })
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                incoming(self.listener, self.options.max_connections),
                shutdown.clone().cancelled_owned(),
            );
        tracing::info!(address = %self.local_addr, "ready");
        let drained = async {
            shutdown.cancelled().await;
            tokio::time::sleep(self.options.drain_timeout_ms).await;
        };
        let serving = async {
            serving.await?;
            writes.close();
            writes.wait().await;
            Ok::<_, tonic::transport::Error>(())
        };
        tokio::select! {
            result = serving => result?,
            // tonic would wait for open connections without a limit.
            () = drained => tracing::warn!("calls were still in flight when the drain timeout passed"),
        }
        checking.await?;
        Ok(())
    }
}

/// Which server to ask for its health.
#[derive(Args, Clone, Debug)]
pub struct HealthcheckOptions {
    /// Where the server listens
    #[arg(long, env = "LISTEN_ADDR")]
    listen_addr: String,
    /// Which part: empty for everything, "projection", or the full name of the gRPC service
    #[arg(long, default_value = "")]
    service: String,
}

impl HealthcheckOptions {
    /// Asks a running server for its health, as a container engine does.
    pub async fn run(self) -> ExitCode {
        match self.ask().await {
            Ok(ServingStatus::Serving) => ExitCode::SUCCESS,
            Ok(status) => {
                eprintln!("{}", status.as_str_name());
                ExitCode::FAILURE
            }
            Err(err) => {
                eprintln!("no answer from {}: {err}", self.listen_addr);
                ExitCode::FAILURE
            }
        }
    }

    async fn ask(&self) -> Result<ServingStatus, Box<dyn std::error::Error + Send + Sync>> {
        // A server that listens on every address is asked on the loopback.
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
