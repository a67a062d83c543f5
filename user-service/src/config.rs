//! The options of `serve`.

use clap::Args;
use cli::{KafkaOptions, kafka_name};
use projection::ConsumerOptions;
use proto::events;
use service_kit::{
    ServerOptions,
    database::{DatabaseOptions, PoolOptions},
};

use crate::orders_projection::OrdersProjection;

#[derive(Args, Debug)]
pub struct ServeOptions {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) database: DatabaseOptions,
    #[command(flatten)]
    pub(crate) calls: PoolOptions,
    #[command(flatten)]
    pub(crate) kafka: KafkaOptions,
    /// Publish this service's user events to this topic
    #[arg(long, env = "USERS_TOPIC", default_value = events::USERS_TOPIC, value_parser = kafka_name)]
    pub(crate) users_topic: String,
    #[command(flatten)]
    pub(crate) orders: ConsumerOptions<OrdersProjection>,
}
