//! The options of `serve`.

use std::time::Duration;

use clap::Args;
use cli::{KafkaOptions, milliseconds, number};
use projection::ConsumerOptions;
use service_kit::{
    ServerOptions,
    database::{DatabaseOptions, PoolOptions},
};

use crate::{
    users_projection::{OrdersTopic, UsersProjection},
    validation::ValidationOptions,
};

#[derive(Args, Debug)]
pub struct ServeOptions {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) database: DatabaseOptions,
    #[command(flatten)]
    pub(crate) calls: PoolOptions,
    /// Let CreateOrder wait at most this many milliseconds for the user version of a consistency token; then
    /// it fails with PROJECTION_LAGGING. Raise it if user events take longer to arrive
    #[arg(long, env = "TOKEN_WAIT_MS", default_value = "2000", value_parser = milliseconds(0..=60_000))]
    pub(crate) token_wait_ms: Duration,
    /// Let CreateOrder wait this many milliseconds for an unknown user, then fail with USER_UNKNOWN; 0 disables the wait. Lower it if many calls name users that do not exist
    #[arg(long, env = "UNKNOWN_USER_WAIT_MS", default_value = "250", value_parser = milliseconds(0..=60_000))]
    pub(crate) unknown_user_wait_ms: Duration,
    /// Let at most this many calls wait for user events at once; further calls do not wait, and fail with
    /// PROJECTION_LAGGING or USER_UNKNOWN. A waiting call reads the database every 50 ms, and fails with
    /// OVERLOADED if MAX_CALLS is then reached; between reads it holds no connection
    #[arg(long, env = "MAX_WAITERS", default_value = "1000", value_parser = number(0..=1_000_000_usize))]
    pub(crate) max_waiters: usize,
    #[command(flatten)]
    pub(crate) validation: ValidationOptions,
    /// Serve at most this many WatchOrders streams at once; further ones are rejected with OVERLOADED. Each stream
    /// polls the database once a second
    #[arg(long, env = "MAX_WATCHES", default_value = "1000", value_parser = number(0..=1_000_000_usize))]
    pub(crate) max_watches: usize,
    /// End a WatchOrders stream with WATCH_TOO_SLOW if the caller does not read it for this many milliseconds.
    /// Raise it for callers that pause longer
    #[arg(long, env = "WATCH_SEND_TIMEOUT_MS", default_value = "10000", value_parser = milliseconds(1..=600_000))]
    pub(crate) watch_send_timeout_ms: Duration,
    #[command(flatten)]
    pub(crate) kafka: KafkaOptions,
    #[command(flatten)]
    pub(crate) topic: OrdersTopic,
    #[command(flatten)]
    pub(crate) users: ConsumerOptions<UsersProjection>,
}
