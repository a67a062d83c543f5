//! user-service: owns the users, and follows the orders of order-service.
//!
//! - [`grpc`] is the door: it decodes a request into the [`domain`], asks the [`store`], encodes
//!   the answer.
//! - [`store`] has all SQL: a user and the event that tells of it are written in one transaction.
//! - [`error`] is the one place where an error becomes a gRPC status.
//! - [`orders_projection`] applies order events to per-user summaries.
//!
//! **Invariant:** nothing here knows where order-service is.

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
use service_kit::{Application, Checks, Server, Service, database, idempotency};
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{config::ServeOptions, grpc::Users, orders_projection::OrdersProjection, store::Store};

/// The schema of this service's database, in the order in which it is built; its own part is last.
pub static MIGRATIONS: [EmbeddedMigrations; 4] = [
    outbox::MIGRATIONS,
    idempotency::MIGRATIONS,
    projection::MIGRATIONS,
    embed_migrations!("migrations"),
];

/// The service's name in its errors, and in Kafka.
pub const NAME: &str = "user-service";

/// One for each of them, at a time.
const BACKGROUND_CONNECTIONS: usize = 3;

/// Far above the largest request.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// A user-service that listens already and does not yet serve.
#[derive(Debug)]
pub struct UserService {
    server: Server,
    options: ServeOptions,
}

impl Application for UserService {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str =
        "Owns the users: gRPC, a database of its own, and an outbox that tells others";
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

    fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    async fn run(self, shutdown: CancellationToken) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Self { server, options } = self;
        // Health, the sweep and the projection have connections of their own, so that a crowd of
        // calls keeps none of them waiting.
        let pool = database::pool(options.database.url(), BACKGROUND_CONNECTIONS);
        let calls = options.calls.open(&options.database);
        let consumer = projection::spawn_consumer(
            options.orders.into_config(options.kafka),
            Arc::new(OrdersProjection),
            pool.clone(),
            shutdown.clone(),
        );
        let state = consumer.state();
        let writes = calls.writes();
        let users = Users::new(Store::new(calls, options.users_topic));
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
            writes,
        };
        server.serve(service, shutdown).await?;
        consumer.join().await;
        Ok(())
    }
}
