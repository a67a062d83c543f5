//! Prepares each statement of a session once.
//!
//! Values are parameters, never a part of the text. So the server parses a statement once per session, and `pg_stat_statements`
//! has one entry for it. The reader's session also keeps one plan.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio_postgres::{Client, Error, Statement};

/// A client and its prepared statements: one for each statement text of this program that it has run.
#[derive(Debug)]
pub(crate) struct PreparingClient {
    client: Client,
    prepared: Mutex<HashMap<Box<str>, Statement>>,
}

impl PreparingClient {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            prepared: Mutex::default(),
        }
    }

    /// Returns the prepared statement. The first call for a text takes a round trip.
    pub(crate) async fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.prepared.lock().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.prepared.lock().insert(sql.into(), statement.clone());
        Ok(statement)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn into_client(self) -> Client {
        self.client
    }
}
