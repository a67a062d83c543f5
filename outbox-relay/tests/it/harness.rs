//! A database with an outbox, and what the tests do to it.

use anyhow::Result;
use devstack::{Addresses, Sql};
use diesel_async::{AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::MigrationHarness as _;
use tokio_postgres::Statement;

/// A new database with an empty outbox, and aggregates with versions to write about.
pub(crate) struct Database {
    pub(crate) url: String,
}

impl Database {
    pub(crate) async fn new(test: &str) -> Result<Self> {
        let url = Addresses::shared()
            .create_database(&Addresses::unique_name(test))
            .await?;
        let mut harness = AsyncMigrationHarness::new(AsyncPgConnection::establish(&url).await?);
        harness
            .run_pending_migrations(outbox::MIGRATIONS)
            .map_err(anyhow::Error::from_boxed)?;
        let database = Self { url };
        let sql = "create table aggregates (key text primary key, version bigint not null)";
        database.connect().await?.batch_execute(sql).await?;
        Ok(database)
    }

    pub(crate) async fn connect(&self) -> Result<Sql> {
        Sql::connect(&self.url).await
    }
}

/// A session that changes aggregates and tells of it.
pub(crate) struct Session {
    pub(crate) client: Sql,
    change: Statement,
    enqueue: Statement,
}

impl Session {
    pub(crate) async fn new(database: &Database) -> Result<Self> {
        let client = database.connect().await?;
        let change = client.prepare(
            "insert into aggregates values ($1, 1)
             on conflict (key) do update set version = aggregates.version + 1
             returning version",
        );
        let enqueue = client.prepare(
            "insert into outbox (topic, key, event_type, aggregate_version, payload)
             values ($1, $2, 'changed', $3, $4) returning seq",
        );
        let (change, enqueue) = tokio::try_join!(change, enqueue)?;
        Ok(Self {
            client,
            change,
            enqueue,
        })
    }

    /// Changes an aggregate, which locks its row, and returns its new version.
    pub(crate) async fn change(&self, key: &str) -> Result<i64> {
        Ok(self.client.query_one(&self.change, &[&key]).await?.get(0))
    }

    /// Writes the event of a change; returns its seq.
    pub(crate) async fn enqueue(&self, topic: &str, key: &str, version: i64) -> Result<i64> {
        let payload = format!(r#"{{"version":{version}}}"#).into_bytes();
        let row = self
            .client
            .query_one(&self.enqueue, &[&topic, &key, &version, &payload])
            .await?;
        Ok(row.get(0))
    }
}
