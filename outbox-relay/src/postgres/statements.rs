//! Prepares each statement of a session once.
//!
//! Values are parameters, never a part of the text. So the server parses a statement once per session, and `pg_stat_statements`
//! has one entry for it. The reader's session also keeps one plan.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio_postgres::{Client, Error, Row, RowStream, Statement, types::ToSql};

pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

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

    pub(crate) async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        self.client.query(&self.prepare(sql).await?, params).await
    }

    pub(crate) async fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        let statement = self.prepare(sql).await?;
        self.client.query_one(&statement, params).await
    }

    pub(crate) async fn query_opt(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, Error> {
        let statement = self.prepare(sql).await?;
        self.client.query_opt(&statement, params).await
    }

    /// Returns the rows one by one, as they are received.
    pub(crate) async fn query_stream(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<RowStream, Error> {
        let statement = self.prepare(sql).await?;
        let params = params.iter().copied();
        self.client.query_raw(&statement, params).await
    }

    pub(crate) async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        self.client.execute(&self.prepare(sql).await?, params).await
    }

    /// Returns the prepared statement. The first call for a text takes a round trip.
    async fn prepare(&self, sql: &str) -> Result<Statement, Error> {
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
