//! The options of `serve`.

use std::time::Duration;

use clap::Args;
use cli::{KafkaOptions, milliseconds, number};
use projection::ConsumerOptions;
use service_kit::{
    ServerOptions,
    database::{CallOptions, DatabaseOptions},
};

use crate::{
    users_projection::{OrdersTopic, UsersProjection},
    validation::ValidationOptions,
};

/// The options of `serve`.
#[derive(Args, Debug)]
pub struct ServeOptions {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) database: DatabaseOptions,
    #[command(flatten)]
    pub(crate) calls: CallOptions,
    /// How long CreateOrder waits at most for what a consistency token names, in milliseconds
    #[arg(long, env = "TOKEN_WAIT_MS", default_value = "2000", value_parser = milliseconds(0..=60_000))]
    pub(crate) token_wait_ms: Duration,
    /// How long CreateOrder waits for a user that is not known yet, in milliseconds; 0 for not at all
    #[arg(long, env = "UNKNOWN_USER_WAIT_MS", default_value = "250", value_parser = milliseconds(0..=60_000))]
    pub(crate) unknown_user_wait_ms: Duration,
    /// How many calls may wait at once; others are told at once to retry
    #[arg(long, env = "MAX_WAITERS", default_value = "1000", value_parser = number(0..=1_000_000_usize))]
    pub(crate) max_waiters: usize,
    #[command(flatten)]
    pub(crate) validation: ValidationOptions,
    /// Streams of WatchOrders at once; others are told to come later
    #[arg(long, env = "MAX_WATCHES", default_value = "1000", value_parser = number(0..=1_000_000_usize))]
    pub(crate) max_watches: usize,
    /// How long a caller of WatchOrders may leave its stream unread, in milliseconds
    #[arg(long, env = "WATCH_PATIENCE_MS", default_value = "10000", value_parser = milliseconds(1..=600_000))]
    pub(crate) watch_patience_ms: Duration,
    #[command(flatten)]
    pub(crate) kafka: KafkaOptions,
    #[command(flatten)]
    pub(crate) topic: OrdersTopic,
    #[command(flatten)]
    pub(crate) users: ConsumerOptions<UsersProjection>,
}
