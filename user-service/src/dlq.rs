//! The subcommand `dlq`: orders that could not be applied.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use program::Problems;
use projection::DlqCommand;
use secrecy::SecretString;
use service_kit::database::{DatabaseOptions, connect_once};

use crate::{config::DEFAULT_CONSUMER_GROUP, orders_projection::OrdersProjection};

/// The options of `dlq`.
#[derive(Args, Clone, Debug)]
pub struct DlqOptions {
    #[command(flatten)]
    database: DatabaseOptions,
    /// Names the projection
    #[arg(long, env = "CONSUMER_GROUP", default_value = DEFAULT_CONSUMER_GROUP)]
    consumer_group: String,
    #[command(subcommand)]
    command: DlqCommand,
}

/// [`DlqOptions`], checked.
#[derive(Clone, Debug)]
pub struct Dlq {
    database_url: SecretString,
    consumer_group: String,
    command: DlqCommand,
}

impl DlqOptions {
    /// What to do, or notes of what is wrong with it.
    pub fn check(self, problems: &mut Problems) -> Option<Dlq> {
        Some(Dlq {
            database_url: self.database.check(problems)?,
            consumer_group: self.consumer_group,
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
        self.command
            .run(&mut conn, &OrdersProjection, &self.consumer_group)
            .await
    }
}
