//! How the service is run. Every option is also a variable:
//!
//! - `LISTEN_ADDR`, `MAX_CONNECTIONS`, `MAX_DEADLINE_MS`, `DRAIN_TIMEOUT_MS`, `GRPC_WEB_ORIGINS`: see
//!   [`ServerOptions`]
//! - `DATABASE_URL` or `DATABASE_URL_FILE`: see [`DatabaseOptions`]
//! - `DATABASE_POOL_SIZE`: connections at most
//! - `MAX_CALLS`: calls that may use or wait for the database at once
//! - `KAFKA_BROKERS`: the brokers to begin with
//! - `USERS_TOPIC`, `ORDERS_TOPIC`: where events go, where they come from
//! - `CONSUMER_GROUP`: names the projection, and its group in Kafka
//! - `DEAD_LETTER_TOPIC`: where copies of records go that could not be applied
//! - `DEAD_LETTER_RETENTION_S`: for how long it is kept what such records hold
//! - `INSTANCE_ID`: names this replica, so that a restart follows on at once

use std::time::Duration;

use clap::Args;
use program::Problems;
use proto::events;
use secrecy::SecretString;
use service_kit::{ServerOptions, ServerSettings, database::DatabaseOptions};

pub(crate) const DEFAULT_CONSUMER_GROUP: &str = "user_service_group";

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
    #[arg(long, env = "USERS_TOPIC", default_value = events::USERS_TOPIC)]
    users_topic: String,
    /// The topic of the orders that are followed
    #[arg(long, env = "ORDERS_TOPIC", default_value = events::ORDERS_TOPIC)]
    orders_topic: String,
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
}

/// [`ServeOptions`], checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) server: ServerSettings,
    pub(crate) database_url: SecretString,
    pub(crate) database_pool_size: usize,
    pub(crate) max_calls: usize,
    pub(crate) users_topic: String,
    pub(crate) orders: projection::Options,
}

impl ServeOptions {
    /// The configuration, or notes of what is wrong with it.
    pub fn check(self, problems: &mut Problems) -> Option<Config> {
        let server = self.server.check(problems);
        let database_url = self.database.check(problems);
        let pool_size = problems.number("DATABASE_POOL_SIZE", &self.database_pool_size, 1..=1_000);
        let max_calls = problems.number("MAX_CALLS", &self.max_calls, 1..=100_000);
        let brokers = problems.required("KAFKA_BROKERS", self.kafka_brokers);
        let brokers = brokers.and_then(|text| problems.brokers("KAFKA_BROKERS", &text));
        let users_topic = problems.kafka_name("USERS_TOPIC", self.users_topic);
        let orders_topic = problems.kafka_name("ORDERS_TOPIC", self.orders_topic);
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
            users_topic: users_topic?,
            orders: projection::Options {
                brokers: brokers?,
                name: group?,
                topic: orders_topic?,
                dead_letter_topic: dead_letter_topic?,
                dead_letter_retention: Duration::from_secs(retention?),
                instance_id: instance_id?,
            },
        })
    }
}
