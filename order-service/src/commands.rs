//! The subcommands that look after what is made from users: `dlq` and `projection`.

use std::{process::ExitCode, sync::Arc};

use anyhow::Result;
use clap::Args;
use program::Problems;
use projection::{DlqCommand, ProjectionCommand, RebuildOptions};
use proto::events;
use secrecy::SecretString;
use service_kit::database::{DatabaseOptions, connect_once};

use crate::{config::DEFAULT_CONSUMER_GROUP, users_projection::UsersProjection};

/// The options of `dlq`.
#[derive(Args, Clone, Debug)]
pub struct DlqOptions {
    #[command(flatten)]
    database: DatabaseOptions,
    /// Names the projection
    #[arg(long, env = "CONSUMER_GROUP", default_value = DEFAULT_CONSUMER_GROUP)]
    consumer_group: String,
    /// The topic of this service's events: a deleted user's open orders are cancelled
    #[arg(long, env = "ORDERS_TOPIC", default_value = events::ORDERS_TOPIC)]
    orders_topic: String,
    #[command(subcommand)]
    command: DlqCommand,
}

/// [`DlqOptions`], checked.
#[derive(Clone, Debug)]
pub struct Dlq {
    database_url: SecretString,
    consumer_group: String,
    orders_topic: String,
    command: DlqCommand,
}

impl DlqOptions {
    /// What to do, or notes of what is wrong with it.
    pub fn check(self, problems: &mut Problems) -> Option<Dlq> {
        let database_url = self.database.check(problems);
        let orders_topic = problems.kafka_name("ORDERS_TOPIC", self.orders_topic);
        Some(Dlq {
            database_url: database_url?,
            consumer_group: self.consumer_group,
            orders_topic: orders_topic?,
            command: self.command,
        })
    }
}

impl Dlq {
    /// Does it, and prints what has become of it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn run(self) -> Result<ExitCode> {
        let mut conn = connect_once(&self.database_url).await?;
        let projection = projection(self.orders_topic);
        self.command
            .run(&mut conn, &projection, &self.consumer_group)
            .await
    }
}

/// The projection, without those whom it would wake: whoever waits in a running server looks for
/// himself now and then.
fn projection(orders_topic: String) -> UsersProjection {
    UsersProjection {
        orders_topic,
        arrivals: Arc::default(),
        changes: Arc::default(),
    }
}

/// The options of `projection`.
#[derive(Args, Clone, Debug)]
pub struct ProjectionOptions {
    #[command(flatten)]
    database: DatabaseOptions,
    /// The Kafka brokers to begin with, as host:port, separated by commas
    #[arg(long, env = "KAFKA_BROKERS")]
    kafka_brokers: Option<String>,
    /// The topic of the users that are followed
    #[arg(long, env = "USERS_TOPIC", default_value = events::USERS_TOPIC)]
    users_topic: String,
    /// The topic of this service's events: a deleted user's open orders are cancelled
    #[arg(long, env = "ORDERS_TOPIC", default_value = events::ORDERS_TOPIC)]
    orders_topic: String,
    /// Names the projection
    #[arg(long, env = "CONSUMER_GROUP", default_value = DEFAULT_CONSUMER_GROUP)]
    consumer_group: String,
    #[command(subcommand)]
    command: ProjectionCommand,
}

/// [`ProjectionOptions`], checked.
#[derive(Clone, Debug)]
pub struct ProjectionUpkeep {
    database_url: SecretString,
    options: RebuildOptions,
    orders_topic: String,
    command: ProjectionCommand,
}

impl ProjectionOptions {
    /// What to do, or notes of what is wrong with it.
    pub fn check(self, problems: &mut Problems) -> Option<ProjectionUpkeep> {
        let database_url = self.database.check(problems);
        let brokers = problems.required("KAFKA_BROKERS", self.kafka_brokers);
        let brokers = brokers.and_then(|text| problems.brokers("KAFKA_BROKERS", &text));
        let topic = problems.kafka_name("USERS_TOPIC", self.users_topic);
        let orders_topic = problems.kafka_name("ORDERS_TOPIC", self.orders_topic);
        Some(ProjectionUpkeep {
            database_url: database_url?,
            options: RebuildOptions {
                brokers: brokers?,
                name: self.consumer_group,
                topic: topic?,
            },
            orders_topic: orders_topic?,
            command: self.command,
        })
    }
}

impl ProjectionUpkeep {
    /// Does it, and prints what has become of it.
    ///
    /// # Errors
    /// If the database or Kafka fails, or the topic can't be complete.
    pub async fn run(self) -> Result<()> {
        let mut conn = connect_once(&self.database_url).await?;
        let mut follower = connect_once(&self.database_url).await?;
        let projection = projection(self.orders_topic);
        self.command
            .run(&mut conn, &mut follower, &projection, &self.options)
            .await
    }
}
