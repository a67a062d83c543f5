//! How the service is run. Every option is also a variable:
//!
//! - `LISTEN_ADDR`, `MAX_CONNECTIONS`, `MAX_DEADLINE_MS`, `DRAIN_TIMEOUT_MS`, `GRPC_WEB_ORIGINS`: see
//!   [`ServerOptions`]
//! - `DATABASE_URL` or `DATABASE_URL_FILE`: see [`DatabaseOptions`]
//! - `DATABASE_POOL_SIZE`: connections at most
//! - `MAX_CALLS`: calls that may use or wait for the database at once
//! - `KAFKA_BROKERS`: the brokers to begin with
//! - `ORDERS_TOPIC`, `USERS_TOPIC`: where events go, where they come from
//! - `CONSUMER_GROUP`: names the projection, and its group in Kafka
//! - `DEAD_LETTER_TOPIC`: where copies of records go that could not be applied
//! - `DEAD_LETTER_RETENTION_S`: for how long it is kept what such records hold
//! - `INSTANCE_ID`: names this replica, so that a restart follows on at once
//! - `TOKEN_WAIT_MS`, `UNKNOWN_USER_WAIT_MS`, `MAX_WAITERS`: how CreateOrder waits for events
//! - `VALIDATION`, `USER_SERVICE_ADDR`: whom CreateOrder asks for a user
//! - `MAX_WATCHES`, `WATCH_PATIENCE_MS`: limits of WatchOrders

use std::time::Duration;

use clap::Args;
use program::Problems;
use proto::events;
use secrecy::SecretString;
use service_kit::{ServerOptions, ServerSettings, database::DatabaseOptions};
use tonic::transport::Endpoint;

use crate::{
    consistency::WaitLimits,
    validation::{Mode, RemoteUsers, Validation},
    watch::WatchLimits,
};

pub(crate) const DEFAULT_CONSUMER_GROUP: &str = "order_service_group";

/// The options of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeOptions {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOptions,
    /// Connections to the database at most; more than its cores can use only queue there
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value = "16")]
    database_pool_size: String,
    /// Calls that may use the database or wait for it at once; others are told at once to come later
    #[arg(long, env = "MAX_CALLS", default_value = "256")]
    max_calls: String,
    /// The Kafka brokers to begin with, as host:port, separated by commas
    #[arg(long, env = "KAFKA_BROKERS")]
    kafka_brokers: Option<String>,
    /// The topic of this service's events
    #[arg(long, env = "ORDERS_TOPIC", default_value = events::ORDERS_TOPIC)]
    orders_topic: String,
    /// The topic of the users that are followed
    #[arg(long, env = "USERS_TOPIC", default_value = events::USERS_TOPIC)]
    users_topic: String,
    /// Names the projection, its offsets and its group in Kafka; another name begins from the start
    #[arg(long, env = "CONSUMER_GROUP", default_value = DEFAULT_CONSUMER_GROUP)]
    consumer_group: String,
    /// The topic that gets copies of records that could not be applied; none if empty. It has to exist
    #[arg(long, env = "DEAD_LETTER_TOPIC", default_value = "")]
    dead_letter_topic: String,
    /// For how long it is kept here what such records hold, in seconds; then it is erased
    #[arg(long, env = "DEAD_LETTER_RETENTION_S", default_value = "604800")]
    dead_letter_retention_s: String,
    /// Names this replica among those of the service, so that a restart follows on at once
    #[arg(long, env = "INSTANCE_ID")]
    instance_id: Option<String>,
    /// How long CreateOrder waits at most for what a consistency token names, in milliseconds
    #[arg(long, env = "TOKEN_WAIT_MS", default_value = "2000")]
    token_wait_ms: String,
    /// How long CreateOrder waits for a user that is not known yet, in milliseconds; 0 for not at all
    #[arg(long, env = "UNKNOWN_USER_WAIT_MS", default_value = "250")]
    unknown_user_wait_ms: String,
    /// How many calls may wait at once; others are told at once to retry
    #[arg(long, env = "MAX_WAITERS", default_value = "1000")]
    max_waiters: String,
    /// Whom CreateOrder asks for a user: local (what was heard of users), local-then-remote (user-service, of users
    /// that were not heard of), remote (user-service, always)
    #[arg(long, env = "VALIDATION", default_value = "local")]
    validation: String,
    /// Where user-service is, as host:port; needed for validation that is not local
    #[arg(long, env = "USER_SERVICE_ADDR")]
    user_service_addr: Option<String>,
    /// Streams of WatchOrders at once; others are told to come later
    #[arg(long, env = "MAX_WATCHES", default_value = "1000")]
    max_watches: String,
    /// How long a caller of WatchOrders may leave its stream unread, in milliseconds
    #[arg(long, env = "WATCH_PATIENCE_MS", default_value = "10000")]
    watch_patience_ms: String,
}

/// [`ServeOptions`], checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) server: ServerSettings,
    pub(crate) database_url: SecretString,
    pub(crate) database_pool_size: usize,
    pub(crate) max_calls: usize,
    pub(crate) orders_topic: String,
    pub(crate) users: projection::Options,
    pub(crate) wait_limits: WaitLimits,
    pub(crate) max_waiters: usize,
    pub(crate) validation: Validation,
    pub(crate) watch_limits: WatchLimits,
}

impl ServeOptions {
    /// The configuration, or notes of what is wrong with it.
    pub fn check(self, problems: &mut Problems) -> Option<Config> {
        let server = self.server.check(problems);
        let database_url = self.database.check(problems);
        let pool_size = problems.number("DATABASE_POOL_SIZE", &self.database_pool_size, 1..=1_000);
        let max_calls = problems.number("MAX_CALLS", &self.max_calls, 1..=100_000);
        let token = problems.number("TOKEN_WAIT_MS", &self.token_wait_ms, 0..=60_000);
        let unknown_user = problems.number(
            "UNKNOWN_USER_WAIT_MS",
            &self.unknown_user_wait_ms,
            0..=60_000,
        );
        let max_waiters = problems.number("MAX_WAITERS", &self.max_waiters, 0..=1_000_000);
        let validation = validation(&self.validation, self.user_service_addr, problems);
        let max_watches = problems.number("MAX_WATCHES", &self.max_watches, 0..=1_000_000);
        let patience = problems.number("WATCH_PATIENCE_MS", &self.watch_patience_ms, 1..=600_000);
        let brokers = problems.required("KAFKA_BROKERS", self.kafka_brokers);
        let brokers = brokers.and_then(|text| problems.brokers("KAFKA_BROKERS", &text));
        let orders_topic = problems.kafka_name("ORDERS_TOPIC", self.orders_topic);
        let users_topic = problems.kafka_name("USERS_TOPIC", self.users_topic);
        let group = problems.required("CONSUMER_GROUP", Some(self.consumer_group));
        let dead_letter_topic = match self.dead_letter_topic {
            topic if topic.is_empty() => Some(None),
            topic => problems.kafka_name("DEAD_LETTER_TOPIC", topic).map(Some),
        };
        let retention = problems.number(
            "DEAD_LETTER_RETENTION_S",
            &self.dead_letter_retention_s,
            1..=31_536_000,
        );
        // Kafka has the same rule for it. Empty is as good as left out.
        let instance_id = match self.instance_id.filter(|id| !id.is_empty()) {
            None => Some(None),
            Some(id) => problems.kafka_name("INSTANCE_ID", id).map(Some),
        };
        Some(Config {
            server: server?,
            database_url: database_url?,
            database_pool_size: pool_size?,
            max_calls: max_calls?,
            orders_topic: orders_topic?,
            users: projection::Options {
                brokers: brokers?,
                name: group?,
                topic: users_topic?,
                dead_letter_topic: dead_letter_topic?,
                dead_letter_retention: Duration::from_secs(retention?),
                instance_id: instance_id?,
            },
            wait_limits: WaitLimits {
                token: Duration::from_millis(token?),
                unknown_user: Duration::from_millis(unknown_user?),
            },
            max_waiters: max_waiters?,
            validation: validation?,
            watch_limits: WatchLimits {
                max_watches: max_watches?,
                patience: Duration::from_millis(patience?),
            },
        })
    }
}

fn validation(mode: &str, addr: Option<String>, problems: &mut Problems) -> Option<Validation> {
    let with: fn(RemoteUsers) -> Validation = match problems.check("VALIDATION", mode.parse())? {
        Mode::Local => return Some(Validation::Local),
        Mode::LocalThenRemote => Validation::LocalThenRemote,
        Mode::Remote => Validation::Remote,
    };
    let addr = problems.required("USER_SERVICE_ADDR", addr)?;
    let endpoint = Endpoint::try_from(format!("http://{addr}"))
        .ok()
        // Without a port it would be that of web pages.
        .filter(|endpoint| endpoint.uri().port_u16().is_some())
        .ok_or_else(|| format!("{addr:?} isn't an address like user-service:50051"));
    let endpoint = problems.check("USER_SERVICE_ADDR", endpoint)?;
    Some(with(RemoteUsers::new(endpoint)))
}
