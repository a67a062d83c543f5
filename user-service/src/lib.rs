//! user-service: owns users, and summarizes the orders of order-service.
//!
//! - [`grpc`] decodes requests into the [`domain`], calls the [`store`], and encodes responses.
//! - [`store`] contains the SQL of the calls: a user and its event are written in one transaction.
//! - [`error`] maps errors to gRPC statuses.
//! - [`orders_projection`] applies order events to per-user summaries, with its own SQL.
//!
//! **Invariant:** this service never calls order-service.

#![allow(missing_docs, reason = "a program, not a library")]

pub mod config;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod orders_projection;
mod schema;
pub mod store;

use std::{error::Error, io, net::SocketAddr, sync::Arc};

use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use proto::user::v1::user_service_server::{SERVICE_NAME, UserServiceServer};
use service_kit::{
    Application, Checks, Server, Service,
    database::{self, DatabaseOptions},
    idempotency,
};
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{config::ServeOptions, grpc::Users, orders_projection::OrdersProjection, store::Store};

/// The migrations of the database, in the order in which they run; the service's own are last.
pub static MIGRATIONS: [EmbeddedMigrations; 4] = [
    outbox::MIGRATIONS,
    idempotency::MIGRATIONS,
    projection::MIGRATIONS,
    embed_migrations!("migrations"),
];

/// The service's name in error details and in Kafka.
pub const NAME: &str = "user-service";

/// One connection each for health, the cleanup of stored responses, and the projection.
const BACKGROUND_CONNECTIONS: usize = 3;

/// Well above the largest request.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// A user-service that is bound but not yet serving.
#[derive(Debug)]
pub struct UserService {
    server: Server,
    options: ServeOptions,
}

impl Application for UserService {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str =
        "Owns users: serves their gRPC API and publishes their events through an outbox";
    type Options = ServeOptions;
    type Projection = OrdersProjection;

    fn migrations() -> &'static [EmbeddedMigrations] {
        &MIGRATIONS
    }

    async fn bind(options: ServeOptions) -> io::Result<Self> {
        Ok(Self {
            server: Server::bind(options.server.clone()).await?,
            options,
        })
    }

    fn database(&self) -> &DatabaseOptions {
        &self.options.database
    }

    fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    async fn run(self, shutdown: CancellationToken) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Self { server, options } = self;
        // Health, the cleanup and the projection have their own connections, so that calls can't starve
        // them.
        let pool = database::create_pool(NAME, options.database.url(), BACKGROUND_CONNECTIONS);
        let database = options.calls.open(NAME, &options.database);
        let consumer = projection::spawn_consumer(
            options.orders.into_config(options.kafka),
            Arc::new(OrdersProjection),
            pool.clone(),
            shutdown.clone(),
        );
        let state = consumer.state();
        let detached_tasks = database.detached_tasks();
        let users = Users::new(Store::new(database, options.users_topic));
        let service = UserServiceServer::new(users)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .accept_compressed(CompressionEncoding::Gzip);
        let service = Service {
            domain: NAME,
            routes: Routes::new(service),
            descriptors: proto::DESCRIPTORS,
            checks: Checks {
                service: SERVICE_NAME,
                pool,
                migrations: &MIGRATIONS,
                projection: move || state.borrow().ensure_running(),
            },
            detached_tasks,
        };
        server.serve(service, shutdown).await?;
        consumer.join().await;
        Ok(())
    }
}
