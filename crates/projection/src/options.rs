//! The command-line options of a program that runs a projection.

use std::{marker::PhantomData, time::Duration};

use clap::Args;
use cli::{
    KafkaOptions, Optional, kafka_name, milliseconds, not_blank, optional_kafka_name, seconds,
};

use crate::{ConsumerConfig, Projection, RebuildOptions};

/// A projection that a program can configure from its command line.
pub trait Configurable: Projection + Sized {
    /// The default of `CONSUMER_GROUP`.
    const CONSUMER_GROUP: &'static str;
    /// The option that sets its topic.
    const TOPIC: TopicOption;
    /// Further options of the projection.
    type Options: Args;

    /// Creates the projection for a subcommand that runs without a server.
    fn from_options(options: Self::Options) -> Self;
}

/// The option that sets a topic.
pub struct TopicOption {
    /// The long option without dashes, such as `users-topic`.
    pub option: &'static str,
    /// The environment variable, such as `USERS_TOPIC`.
    pub variable: &'static str,
    /// The default topic.
    pub default: &'static str,
    /// The help text.
    pub help: &'static str,
}

/// The option that names the projection `P`.
#[derive(Args, Debug)]
pub(crate) struct NameOption<P: Configurable> {
    /// Use this name for the projection, its stored offsets and its consumer group; a new name starts from the earliest record
    #[arg(long, env = "CONSUMER_GROUP", default_value = P::CONSUMER_GROUP, value_parser = not_blank)]
    pub(crate) consumer_group: String,
    #[arg(skip)]
    projection: PhantomData<P>,
}

impl<P: Configurable> SourceOptions<P> {
    pub(crate) fn into_rebuild_options(self, kafka: KafkaOptions) -> RebuildOptions {
        RebuildOptions {
            brokers: kafka.kafka_brokers,
            name: self.name.consumer_group,
            topic: self.consumed_topic,
        }
    }
}

/// The options that set the topic and the name of the projection `P`.
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
    pub(crate) consumed_topic: String,
    #[command(flatten)]
    pub(crate) name: NameOption<P>,
}

/// The options of the projection `P` and its consumer.
#[derive(Args, Debug)]
pub struct ConsumerOptions<P: Configurable> {
    #[command(flatten)]
    source: SourceOptions<P>,
    /// Copy dead letters to this topic, which must exist; empty: no copies
    #[arg(
        long,
        env = "DEAD_LETTER_TOPIC",
        default_value = "",
        hide_default_value = true,
        value_parser = optional_kafka_name
    )]
    dead_letter_topic: Optional<String>,
    /// Erase the contents of dead letters after this many seconds; their rows stay
    #[arg(long, env = "DEAD_LETTER_RETENTION_S", default_value = "604800", value_parser = seconds(1..=31_536_000))]
    dead_letter_retention_s: Duration,
    /// Set the group.instance.id of this replica, unique in the group: a restart within the session timeout then resumes at once, and a shutdown keeps the partitions for as long; empty: none, and a shutdown hands them over at once
    #[arg(
        long,
        env = "INSTANCE_ID",
        default_value = "",
        hide_default_value = true,
        value_parser = optional_kafka_name
    )]
    instance_id: Optional<String>,
    /// Assign the partitions of a replica to others after this time without a heartbeat from it; the brokers set the limits (group.min.session.timeout.ms, by default 6000)
    #[arg(long, env = "SESSION_TIMEOUT_MS", default_value = "6000", value_parser = milliseconds(1_000..=300_000))]
    session_timeout_ms: Duration,
}

impl<P: Configurable> ConsumerOptions<P> {
    /// Returns the configuration of the consumer.
    pub fn into_config(self, kafka: KafkaOptions) -> ConsumerConfig {
        ConsumerConfig {
            brokers: kafka.kafka_brokers,
            name: self.source.name.consumer_group,
            topic: self.source.consumed_topic,
            dead_letter_topic: self.dead_letter_topic,
            dead_letter_retention: self.dead_letter_retention_s,
            instance_id: self.instance_id,
            session_timeout: self.session_timeout_ms,
        }
    }
}
