//! A database with an outbox, the sessions that write to it, and a relay that publishes it.

mod relay;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use devstack::{Addresses, Sql};
use diesel_async::{AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::MigrationHarness as _;
use tokio::task::JoinHandle;
use tokio_postgres::Statement;
use uuid::Uuid;

pub(crate) use self::relay::{Running, Setup};

/// Few, so that several versions of a key are always in flight.
const KEYS: usize = 10;
const WRITERS: usize = 3;

/// A new database with an empty outbox and a table of versioned aggregates.
pub(crate) struct Database {
    pub(crate) url: String,
}

impl Database {
    pub(crate) async fn new(test: &str) -> Result<Self> {
        let url = Addresses::shared()
            .create_database(&Addresses::unique_name(test))
            .await?;
        Self::at(url).await
    }

    /// Creates the tables in this empty database. New rows always go to the same bucket, so that no partition is truncated when
    /// the ten minutes of a bucket end during a test.
    pub(crate) async fn at(url: String) -> Result<Self> {
        let mut harness = AsyncMigrationHarness::new(AsyncPgConnection::establish(&url).await?);
        harness
            .run_pending_migrations(outbox::MIGRATIONS)
            .map_err(anyhow::Error::from_boxed)?;
        let database = Self { url };
        let sql = "create table aggregates (key text primary key, version bigint not null);
            alter table outbox alter column bucket
                set default (extract(epoch from timestamptz 'epoch')::bigint / 600 % 8)::smallint";
        database.connect().await?.batch_execute(sql).await?;
        Ok(database)
    }

    pub(crate) async fn connect(&self) -> Result<Sql> {
        Sql::connect(&self.url).await
    }

    /// Waits for the readers to end, because a session reports its last statistics at its end. Returns how many rows of the
    /// outbox were fetched by an index.
    pub(crate) async fn rows_fetched(&self) -> Result<i64> {
        let client = self.connect().await?;
        let readers = "select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'outbox-relay reader'";
        client.wait_for(readers, 0).await?;
        let fetched = "select sum(idx_tup_fetch) from pg_stat_user_tables
            where relname like 'outbox%'";
        client.count(fetched).await
    }

    /// Returns every aggregate with its newest version.
    pub(crate) async fn newest(&self) -> Result<Vec<(String, i64)>> {
        let sql = "select key, version from aggregates";
        let rows = self.connect().await?.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// Sessions that change aggregates, each change in a transaction with its event.
pub(crate) struct Writers {
    writing: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    pub(crate) async fn start(database: &Database, topic: &str) -> Result<Self> {
        let writing = Arc::new(AtomicBool::new(true));
        let mut tasks = Vec::new();
        for _ in 0..WRITERS {
            let session = Session::new(database).await?;
            let (topic, writing) = (topic.to_owned(), Arc::clone(&writing));
            tasks.push(tokio::spawn(async move {
                for turn in 0.. {
                    if !writing.load(Ordering::Acquire) {
                        break;
                    }
                    session
                        .write(&topic, &format!("key-{}", turn % KEYS))
                        .await?;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok(())
            }));
        }
        Ok(Self { writing, tasks })
    }

    pub(crate) async fn end(&mut self) -> Result<()> {
        self.writing.store(false, Ordering::Release);
        for task in self.tasks.drain(..) {
            task.await??;
        }
        Ok(())
    }
}

/// A session that changes aggregates and enqueues their events.
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

    /// Changes an aggregate and enqueues the event in one transaction.
    pub(crate) async fn write(&self, topic: &str, key: &str) -> Result<()> {
        self.client.batch_execute("begin").await?;
        let version = self.change(key).await?;
        self.enqueue(topic, key, version).await?;
        Ok(self.client.batch_execute("commit").await?)
    }

    /// Changes an aggregate, which locks its row. Returns the new version.
    pub(crate) async fn change(&self, key: &str) -> Result<i64> {
        Ok(self.client.query_one(&self.change, &[&key]).await?.get(0))
    }

    /// Enqueues the event of a change. Returns its id.
    pub(crate) async fn enqueue_event(&self, key: &str, version: i64) -> Result<Uuid> {
        let sql = "insert into outbox (topic, key, event_type, aggregate_version)
            values ('topic', $1, 'changed', $2) returning event_id::text";
        let row = self.client.query_one(sql, &[&key, &version]).await?;
        Ok(row.get::<_, &str>(0).parse()?)
    }

    /// Draws the next seq of the outbox.
    pub(crate) async fn next_seq(&self) -> Result<i64> {
        self.client.count("select nextval('outbox_seq')").await
    }

    /// Returns the last seq that was drawn.
    pub(crate) async fn last_seq(&self) -> Result<i64> {
        self.client.count("select last_value from outbox_seq").await
    }

    /// Inserts an event with the given seq and transaction id. Returns its id.
    pub(crate) async fn enqueue_as(
        &self,
        key: &str,
        seq: Option<i64>,
        xid: Option<u64>,
    ) -> Result<Uuid> {
        let sql = "insert into outbox (topic, key, event_type, aggregate_version, seq, xid)
            values ('topic', $1, 'changed', 1, $2, coalesce($3::text::xid8, pg_current_xact_id()))
            returning event_id::text";
        let xid = xid.map(|xid| xid.to_string());
        let row = self.client.query_one(sql, &[&key, &seq, &xid]).await?;
        Ok(row.get::<_, &str>(0).parse()?)
    }

    /// Enqueues the event of a change. Returns its seq.
    pub(crate) async fn enqueue(&self, topic: &str, key: &str, version: i64) -> Result<i64> {
        let payload = format!(r#"{{"version":{version}}}"#).into_bytes();
        let row = self
            .client
            .query_one(&self.enqueue, &[&topic, &key, &version, &payload])
            .await?;
        Ok(row.get(0))
    }
}
