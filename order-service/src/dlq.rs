//! The subcommand `dlq`: users that could not be applied.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use program::Problems;
use projection::DlqCommand;
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
        // Whoever waits in a running server looks for himself now and then.
        let projection = UsersProjection {
            orders_topic: self.orders_topic,
            arrivals: Default::default(),
            changes: Default::default(),
        };
        self.command
            .run(&mut conn, &projection, &self.consumer_group)
            .await
    }
}
