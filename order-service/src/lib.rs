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

pub mod commands;
pub mod config;
pub mod consistency;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod placing;
mod schema;
pub mod store;
pub mod users_projection;
pub mod validation;
pub mod wakers;
pub mod watch;

use std::{error::Error, io, net::SocketAddr, sync::Arc};

use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use proto::order::v1::order_service_server::{OrderServiceServer, SERVICE_NAME};
use service_kit::{
    Checks, Server, Service,
    database::{self, CallDatabase},
    idempotency,
};
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, service::Routes};

use crate::{
    config::Config, consistency::Waiters, grpc::Orders, placing::Placing, store::Store,
    users_projection::UsersProjection, wakers::Wakers, watch::Watches,
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

/// A order-service that listens already and does not yet serve.
#[derive(Debug)]
pub struct OrderService {
    server: Server,
    config: Config,
}

impl OrderService {
    /// Takes the port.
    ///
    /// # Errors
    /// If somebody else has it.
    pub async fn bind(config: Config) -> io::Result<Self> {
        Ok(Self {
            server: Server::bind(config.server.clone()).await?,
            config,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Serves gRPC and follows the users until `shutdown`.
    ///
    /// # Errors
    /// If the listener fails. A database or a Kafka that is away is no error: health tells, and
    /// calls are refused with a hint.
    pub async fn run(
        self,
        shutdown: CancellationToken,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Self { server, config } = self;
        // Health, the sweep, the projection and the watches have connections of their own, so that a
        // crowd of calls keeps none of them waiting.
        let pool = database::pool(&config.database_url, BACKGROUND_CONNECTIONS);
        let calls = database::pool(&config.database_url, config.database_pool_size);
        let calls = CallDatabase::new(calls, config.max_calls);
        let (arrivals, changes) = (Arc::new(Wakers::default()), Arc::new(Wakers::default()));
        let projection = UsersProjection {
            orders_topic: config.orders_topic.clone(),
            arrivals: Arc::clone(&arrivals),
            changes: Arc::clone(&changes),
        };
        let following = projection::follow(
            config.users,
            Arc::new(projection),
            pool.clone(),
            shutdown.clone(),
        );
        let state = following.state();
        let looks = database::pool(&config.database_url, watch::MAX_LOOKS);
        let looks = CallDatabase::new(looks, watch::MAX_LOOKS);
        let store = Store::new(calls, config.orders_topic.clone());
        let watches = Watches::new(
            Store::new(looks, config.orders_topic),
            Arc::clone(&changes),
            config.watch_limits,
            shutdown.clone(),
        );
        let placing = Placing {
            store,
            waiters: Waiters::new(arrivals, config.max_waiters),
            limits: config.wait_limits,
            validation: config.validation,
            changes,
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
                projection: move || state.borrow().check(),
            },
        };
        server.serve(service, shutdown).await?;
        following.ended().await;
        Ok(())
    }
}
