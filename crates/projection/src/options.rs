//! The options of a program that follows a topic, and looks after its projection.

use std::{marker::PhantomData, time::Duration};

use clap::Args;
use cli::{KafkaOptions, Optional, kafka_name, not_blank, optional_kafka_name, seconds};

use crate::{Options, Projection, RebuildOptions};

/// A projection with options of its own, which a program can follow.
pub trait Configurable: Projection + Sized {
    /// Its name, where `CONSUMER_GROUP` gives no other.
    const CONSUMER_GROUP: &'static str;
    /// How the topic that it follows is set.
    const TOPIC: TopicOption;
    /// What else it needs.
    type Options: Args;

    /// The projection, outside of a server.
    fn from_options(options: Self::Options) -> Self;
}

/// How a topic is set.
pub struct TopicOption {
    /// As in `--users-topic`.
    pub option: &'static str,
    /// As in `USERS_TOPIC`.
    pub variable: &'static str,
    /// The topic, if nothing sets it.
    pub default: &'static str,
    /// Its line in `--help`.
    pub help: &'static str,
}

/// The name of the projection `P`.
#[derive(Args, Debug)]
pub(crate) struct NameOption<P: Configurable> {
    /// Names the projection, its offsets and its group in Kafka; another name begins from the start
    #[arg(long, env = "CONSUMER_GROUP", default_value = P::CONSUMER_GROUP, value_parser = not_blank)]
    pub(crate) consumer_group: String,
    #[arg(skip)]
    projection: PhantomData<P>,
}

impl<P: Configurable> SourceOptions<P> {
    /// The projection, on this Kafka.
    pub(crate) fn on(self, kafka: KafkaOptions) -> RebuildOptions {
        RebuildOptions {
            brokers: kafka.kafka_brokers,
            name: self.name.consumer_group,
            topic: self.followed_topic,
        }
    }
}

/// The topic that the projection `P` follows, and its name.
#[derive(Args, Debug)]
pub(crate) struct SourceOptions<P: Configurable> {
    #[arg(
        long = P::TOPIC.option,
        env = P::TOPIC.variable,
        value_name = P::TOPIC.variable,
        default_value = P::TOPIC.default,
        help = P::TOPIC.help,
        value_parser = kafka_name
    )]
    pub(crate) followed_topic: String,
    #[command(flatten)]
    pub(crate) name: NameOption<P>,
}

/// How to follow the projection `P`.
#[derive(Args, Debug)]
pub struct FollowOptions<P: Configurable> {
    #[command(flatten)]
    source: SourceOptions<P>,
    /// The topic that receives copies of records that could not be applied. It must exist; leave it empty for no copies
    #[arg(
        long,
        env = "DEAD_LETTER_TOPIC",
        default_value = "",
        hide_default_value = true,
        value_parser = optional_kafka_name
    )]
    dead_letter_topic: Optional<String>,
    /// For how long it is kept here what such records hold, in seconds; then it is erased
    #[arg(long, env = "DEAD_LETTER_RETENTION_S", default_value = "604800", value_parser = seconds(1..=31_536_000))]
    dead_letter_retention_s: Duration,
    /// Names this replica among those of the service, so that a restart follows on at once
    #[arg(
        long,
        env = "INSTANCE_ID",
        default_value = "",
        hide_default_value = true,
        value_parser = optional_kafka_name
    )]
    instance_id: Optional<String>,
}

impl<P: Configurable> FollowOptions<P> {
    /// What to follow on this Kafka.
    pub fn on(self, kafka: KafkaOptions) -> Options {
        Options {
            brokers: kafka.kafka_brokers,
            name: self.source.name.consumer_group,
            topic: self.source.followed_topic,
            dead_letter_topic: self.dead_letter_topic,
            dead_letter_retention: self.dead_letter_retention_s,
            instance_id: self.instance_id,
        }
    }
}
