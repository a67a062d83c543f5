//! order-service: owns the orders, and follows the users of user-service.
//!
//! - [`grpc`] is the door: it decodes a request into the [`domain`], asks the [`store`], encodes
//!   the answer.
//! - [`placing`] is what CreateOrder does, [`watch`] what WatchOrders does.
//! - [`store`] has all SQL: an order and the event that tells of it are written in one transaction.
//! - [`error`] is the one place where an error becomes a gRPC status.
//! - [`users_projection`] applies user events to `users_cache`; [`consistency`] lets calls wait for
//!   them.
//!
//! **Invariant:** an order is validated against `users_cache`, and against nothing else. Nothing here
//! knows where user-service is, unless it is told to ask it: see [`validation`].

pub mod config;
pub mod consistency;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod placing;
mod schema;
pub mod store;
pub mod subscribers;
pub mod users_projection;
pub mod validation;
pub mod watch;

use std::{error::Error, io, net::SocketAddr, sync::Arc};

use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use proto::order::v1::order_service_server::{OrderServiceServer, SERVICE_NAME};
use service_kit::{
    Application, Checks, Server, Service,
    database::{self, CallDatabase},
    idempotency,
};
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{
    config::ServeOptions,
    consistency::{WaitLimits, Waiters},
    grpc::Orders,
    placing::Placing,
    store::Store,
    subscribers::Subscribers,
    users_projection::{OrdersTopic, UsersProjection},
    watch::{WatchLimits, Watches},
};

/// The schema of this service's database, in the order in which it is built; its own part is last.
pub static MIGRATIONS: [EmbeddedMigrations; 4] = [
    outbox::MIGRATIONS,
    idempotency::MIGRATIONS,
    projection::MIGRATIONS,
    embed_migrations!("migrations"),
];

/// The service's name in its errors, and in Kafka.
pub const NAME: &str = "order-service";

/// One each for health, the sweep and the projection, at a time.
const BACKGROUND_CONNECTIONS: usize = 3;

/// Far above the largest request.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// An order-service that listens already and does not yet serve.
#[derive(Debug)]
pub struct OrderService {
    server: Server,
    options: ServeOptions,
}

impl Application for OrderService {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str =
        "Owns the orders: gRPC, a database of its own, and an outbox that tells others";
    type Options = ServeOptions;
    type Projection = UsersProjection;

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
        // Health, the sweep, the projection and the watches have connections of their own, so that a
        // crowd of calls keeps none of them waiting.
        let pool = database::pool(options.database.url(), BACKGROUND_CONNECTIONS);
        let calls = options.calls.open(&options.database);
        let (arrivals, changes) = (
            Arc::new(Subscribers::default()),
            Arc::new(Subscribers::default()),
        );
        let OrdersTopic { orders_topic } = options.topic;
        let projection = UsersProjection {
            orders_topic: orders_topic.clone(),
            arrivals: Arc::clone(&arrivals),
            changes: Arc::clone(&changes),
        };
        let consumer = projection::spawn_consumer(
            options.users.into_config(options.kafka),
            Arc::new(projection),
            pool.clone(),
            shutdown.clone(),
        );
        let state = consumer.state();
        let looks = database::pool(options.database.url(), watch::MAX_LOOKS);
        let looks = CallDatabase::new(looks, watch::MAX_LOOKS);
        let writes = calls.writes();
        let store = Store::new(calls, orders_topic.clone(), Arc::clone(&changes));
        let watches = Watches::new(
            Store::new(looks, orders_topic, Arc::clone(&changes)),
            changes,
            WatchLimits {
                max_watches: options.max_watches,
                patience: options.watch_patience_ms,
            },
            shutdown.clone(),
        );
        let placing = Placing {
            store,
            waiters: Waiters::new(arrivals, options.max_waiters),
            limits: WaitLimits {
                token: options.token_wait_ms,
                unknown_user: options.unknown_user_wait_ms,
            },
            validation: options.validation.into(),
        };
        let orders = Orders::new(placing, watches);
        let service = OrderServiceServer::new(orders)
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
