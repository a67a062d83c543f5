//! order-service: owns orders, and caches the users of user-service.
//!
//! - [`grpc`] decodes requests into the [`domain`], calls the [`store`], and encodes responses.
//! - [`create_order`] implements CreateOrder, [`watch`] implements WatchOrders.
//! - [`store`] contains the SQL of the calls: an order and its event are written in one transaction.
//! - [`error`] maps errors to gRPC statuses.
//! - [`users_projection`] applies user events to `users_cache`, with its own SQL; [`consistency`] waits for them.
//!
//! By default an order is validated against `users_cache`, and this service never calls user-service. See
//! [`validation`] for the other modes.

#![allow(missing_docs, reason = "a program, not a library")]

pub mod config;
pub mod consistency;
pub mod create_order;
pub mod domain;
pub mod error;
pub mod grpc;

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
    database::{self, Database, DatabaseOptions},
    idempotency,
};
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{
    config::ServeOptions,
    consistency::{UserWaiter, WaitLimits},
    create_order::CreateOrderHandler,
    grpc::Orders,
    store::Store,
    subscribers::Subscribers,
    users_projection::{OrdersTopic, UsersProjection},
    watch::{WatchLimits, Watches},
};

/// The migrations of the database, in the order in which they run; the service's own are last.
pub static MIGRATIONS: [EmbeddedMigrations; 4] = [
    outbox::MIGRATIONS,
    idempotency::MIGRATIONS,
    projection::MIGRATIONS,
    embed_migrations!("migrations"),
];

/// The service's name in error details and in Kafka.
pub const NAME: &str = "order-service";

/// Shared by health, the cleanup of stored responses, and the projection with its dead letters.
const BACKGROUND_CONNECTIONS: usize = 3;

/// Well above the largest request.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// An order-service that is bound but not yet serving.
#[derive(Debug)]
pub struct OrderService {
    server: Server,
    options: ServeOptions,
}

impl Application for OrderService {
    const NAME: &'static str = NAME;
    const ABOUT: &'static str =
        "Owns orders: serves their gRPC API and publishes their events through an outbox";
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

    fn database(&self) -> &DatabaseOptions {
        &self.options.database
    }

    fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    async fn run(self, shutdown: CancellationToken) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Self { server, options } = self;
        // Health, the cleanup, the projection and the watches have their own connections, so that calls
        // can't starve them.
        let pool = database::create_pool(NAME, options.database.url(), BACKGROUND_CONNECTIONS);
        let database = options.calls.open(NAME, &options.database);
        let (user_subscribers, order_subscribers) = (
            Arc::new(Subscribers::default()),
            Arc::new(Subscribers::default()),
        );
        let OrdersTopic { orders_topic } = options.topic;
        let projection = UsersProjection {
            orders_topic: orders_topic.clone(),
            user_subscribers: Arc::clone(&user_subscribers),
            order_subscribers: Arc::clone(&order_subscribers),
        };
        let consumer = projection::spawn_consumer(
            options.users.into_config(options.kafka),
            Arc::new(projection),
            pool.clone(),
            shutdown.clone(),
        );
        let state = consumer.state();
        let watch_pool =
            database::create_pool(NAME, options.database.url(), watch::MAX_CONCURRENT_POLLS);
        let watch_database = Database::new(watch_pool, watch::MAX_CONCURRENT_POLLS);
        let detached_tasks = database.detached_tasks();
        let store = Store::new(
            database,
            orders_topic.clone(),
            Arc::clone(&order_subscribers),
        );
        let watches = Watches::new(
            Store::new(watch_database, orders_topic, Arc::clone(&order_subscribers)),
            order_subscribers,
            WatchLimits {
                max_watches: options.max_watches,
                send_timeout: options.watch_send_timeout_ms,
            },
            shutdown.clone(),
        );
        let handler = CreateOrderHandler {
            store,
            user_waiter: UserWaiter::new(user_subscribers, options.max_waiters),
            limits: WaitLimits {
                token: options.token_wait_ms,
                unknown_user: options.unknown_user_wait_ms,
            },
            validation: options.validation.into(),
        };
        let orders = Orders::new(handler, watches);
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
            detached_tasks,
        };
        server.serve(service, shutdown).await?;
        consumer.join().await;
        Ok(())
    }
}
