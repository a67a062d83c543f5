//! A projection that counts, with its own topic and database.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use devstack::{Addresses, Sql, WAIT_TIMEOUT, eventually};
use diesel::{QueryResult, sql_types::*};
use diesel_async::{
    AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl as _,
};
use diesel_migrations::MigrationHarness as _;
use postgres_session::{Pool, PooledSession, SessionOptions};
use projection::{
    ConsumerConfig, ConsumerHandle, ConsumerState, Poison, Projection, RebuildOptions, Record,
    ResetMode, spawn_consumer,
};
use tokio_util::sync::CancellationToken;

pub(crate) const TOTAL: &str = "select coalesce(sum(count), 0) from counts";
pub(crate) const DEAD: &str = "select count(*) from dead_letters";

/// Counts how often each key was applied, which reveals every repetition.
pub(crate) struct Counts;

impl Projection for Counts {
    type Change = String;

    fn decode(&self, record: &Record<'_>) -> Result<Option<String>, Poison> {
        match record.required_header("ce_type")? {
            "count" => Ok(Some(record.key_text()?.to_owned())),
            "panic" => panic!("a bug in decode"),
            _ => Ok(None),
        }
    }

    fn decode_tombstone(&self, _: &Record<'_>) -> Option<String> {
        None
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, changes: &[String]) -> QueryResult<()> {
        diesel::sql_query(
            "insert into counts
             select key, count(*) from unnest($1::text[]) as key group by key order by key
             on conflict (key) do update set count = counts.count + excluded.count",
        )
        .bind::<Array<Text>, _>(changes)
        .execute(conn)
        .await?;
        Ok(())
    }
}

pub(crate) struct Setup {
    pub(crate) name: String,
    pub(crate) servers: Addresses,
    /// The brokers of its consumers.
    brokers: String,
    pub(crate) url: String,
    pool: Pool,
    pub(crate) sql: Sql,
}

pub(crate) struct Running {
    pub(crate) consumer: ConsumerHandle,
    shutdown: CancellationToken,
}

impl Setup {
    pub(crate) async fn new(test: &str) -> Result<Self> {
        Self::with_partitions(test, 3).await
    }

    /// Creates a setup whose topic has this number of partitions.
    pub(crate) async fn with_partitions(test: &str, partitions: i32) -> Result<Self> {
        Self::on(Addresses::shared(), test, partitions).await
    }

    /// Creates a setup on these servers.
    pub(crate) async fn on(servers: &Addresses, test: &str, partitions: i32) -> Result<Self> {
        let setup = Self::without_topic(servers, test).await?;
        servers.create_topic(&setup.name, partitions).await?;
        Ok(setup)
    }

    /// Creates a setup whose topic does not exist.
    pub(crate) async fn without_topic(servers: &Addresses, test: &str) -> Result<Self> {
        let name = Addresses::unique_name(test);
        let url = servers.create_database(&name).await?;
        let mut harness = AsyncMigrationHarness::new(AsyncPgConnection::establish(&url).await?);
        harness
            .run_pending_migrations(projection::MIGRATIONS)
            .map_err(anyhow::Error::from_boxed)?;
        let sql = "create table counts (
                       key varchar(20) primary key constraint counts_key_short check (length(key) < 10),
                       count integer not null)";
        let session = Sql::connect(&url).await?;
        session.batch_execute(sql).await?;
        Ok(Self {
            name,
            servers: servers.clone(),
            brokers: servers.brokers().to_owned(),
            pool: pool(&url),
            url,
            sql: session,
        })
    }

    /// Lets consumers connect to these brokers.
    pub(crate) fn consuming_from(mut self, brokers: &str) -> Self {
        brokers.clone_into(&mut self.brokers);
        self
    }

    /// Lets consumers connect to this URL of the database.
    pub(crate) fn applying_to(mut self, url: &str) -> Result<Self> {
        self.pool = pool(url);
        Ok(self)
    }

    /// Creates another pool: each replica has its own.
    pub(crate) fn new_pool(&self) -> Pool {
        pool(&self.url)
    }

    /// Creates a pool whose statements have this limit.
    pub(crate) fn pool_with_statement_timeout(&self, statement_timeout: Duration) -> Pool {
        let options = SessionOptions {
            statement_timeout,
            ..SessionOptions::for_service("projection")
        };
        pool_with(&self.url, options)
    }

    /// Returns the configuration of a replica, as a static member of the group if it has an instance id.
    pub(crate) fn config(&self, instance_id: Option<&str>) -> ConsumerConfig {
        ConsumerConfig {
            brokers: self.brokers.clone(),
            name: self.name.clone(),
            topic: self.name.clone(),
            dead_letter_topic: None,
            dead_letter_retention: Duration::from_hours(1),
            instance_id: instance_id.map(str::to_owned),
            session_timeout: Duration::from_secs(6),
        }
    }

    pub(crate) fn start(&self) -> Running {
        self.start_as(&self.name)
    }

    /// Writes records, cycling through the keys, and starts a consumer that applies all of them.
    pub(crate) async fn apply_all(&self, records: i64, keys: i64) -> Result<Running> {
        for number in 0..records {
            self.count(&format!("k{}", number % keys)).await?;
        }
        let running = self.start();
        self.sql.wait_for(TOTAL, records).await?;
        Ok(running)
    }

    /// Starts a consumer with this name.
    pub(crate) fn start_as(&self, name: &str) -> Running {
        self.start_with(name, None)
    }

    pub(crate) fn start_with_dead_letter_topic(&self, topic: &str) -> Running {
        self.start_with(&self.name, Some(topic))
    }

    /// Starts a consumer with its own pool.
    pub(crate) fn start_on(&self, pool: Pool) -> Running {
        let shutdown = CancellationToken::new();
        let config = self.config(Some("only"));
        let consumer = spawn_consumer(config, Arc::new(Counts), pool, shutdown.clone());
        Running { consumer, shutdown }
    }

    /// Starts a consumer as one of several static members of the group.
    pub(crate) fn start_replica(&self, instance_id: &str) -> Running {
        self.start_with_config(self.config(Some(instance_id)))
    }

    fn start_with(&self, name: &str, dead_letter_topic: Option<&str>) -> Running {
        let config = ConsumerConfig {
            name: name.to_owned(),
            dead_letter_topic: dead_letter_topic.map(str::to_owned),
            ..self.config(Some("only"))
        };
        self.start_with_config(config)
    }

    pub(crate) fn start_with_config(&self, config: ConsumerConfig) -> Running {
        let shutdown = CancellationToken::new();
        let consumer = spawn_consumer(
            config,
            Arc::new(Counts),
            self.pool.clone(),
            shutdown.clone(),
        );
        Running { consumer, shutdown }
    }

    /// Deletes the topic and creates it again.
    pub(crate) async fn recreate_topic(&self) -> Result<()> {
        self.servers.delete_topic(&self.name).await?;
        // Kafka completes the deletion some time after its response.
        eventually("a new topic", async || {
            Ok(self.servers.create_topic(&self.name, 3).await.ok())
        })
        .await
    }

    /// The projection and its topic, for commands.
    pub(crate) fn options(&self) -> RebuildOptions {
        RebuildOptions {
            brokers: self.servers.brokers().to_owned(),
            name: self.name.clone(),
            topic: self.name.clone(),
        }
    }

    /// Deletes the stored offsets, once the sessions of static members have timed out.
    pub(crate) async fn reset(&self) -> Result<()> {
        let mut conn = self.session().await?;
        let options = self.options();
        eventually("the offsets are deleted", async || {
            Ok(projection::reset(&mut conn, &options, ResetMode::Delete)
                .await
                .ok())
        })
        .await
        .map(drop)
    }

    /// Opens another session for queries.
    pub(crate) async fn connect_sql(&self) -> Result<Sql> {
        Sql::connect(&self.url).await
    }

    /// Opens a session outside of the pool.
    pub(crate) async fn session(&self) -> Result<AsyncPgConnection> {
        let options = SessionOptions::for_service("projection");
        Ok(postgres_session::connect_diesel(&self.url.as_str().into(), &options).await?)
    }

    /// Opens a transaction that has read the table.
    pub(crate) async fn open_transaction_on_counts(&self) -> Result<Sql> {
        let reader = self.connect_sql().await?;
        reader
            .batch_execute("begin; select count(*) from counts")
            .await?;
        Ok(reader)
    }

    pub(crate) async fn connection(&self) -> Result<PooledSession> {
        Ok(self.pool.get().await?)
    }

    pub(crate) async fn count(&self, key: &str) -> Result<()> {
        let payload = Some(&b"{}"[..]);
        let headers = [("ce_type", "count")];
        self.servers
            .write_record(&self.name, Some(key.as_bytes()), payload, &headers)
            .await
    }
}

fn pool(url: &str) -> Pool {
    pool_with(url, SessionOptions::for_service("projection"))
}

fn pool_with(url: &str, options: SessionOptions) -> Pool {
    Pool::new(url.into(), options, 4, WAIT_TIMEOUT)
}

impl Running {
    /// Waits for a state, and returns it.
    pub(crate) async fn wait_for(
        &self,
        wanted: impl FnMut(&ConsumerState) -> bool,
    ) -> Result<ConsumerState> {
        let mut state = self.consumer.state();
        let reached = tokio::time::timeout(WAIT_TIMEOUT, state.wait_for(wanted)).await;
        let reached = reached.with_context(|| format!("still {:?}", self.consumer.state()))??;
        Ok(reached.clone())
    }

    /// Waits until the consumer has stopped, and returns the reason.
    pub(crate) async fn wait_for_stop(&self) -> Result<String> {
        match self
            .wait_for(|state| matches!(state, ConsumerState::Stopped(_)))
            .await?
        {
            ConsumerState::Stopped(reason) => Ok(reason),
            other => bail!("{other:?}"),
        }
    }

    pub(crate) async fn wait_until_running(&self) -> Result<()> {
        let running = self.wait_for(|state| *state == ConsumerState::Running);
        running.await.map(drop)
    }

    /// Waits until the consumer is failing, and returns the reason.
    pub(crate) async fn wait_for_failure(&self, containing: &str) -> Result<String> {
        let failing = self.wait_for(
            |state| matches!(state, ConsumerState::Failing(reason) if reason.contains(containing)),
        );
        match failing.await? {
            ConsumerState::Failing(reason) => Ok(reason),
            other => bail!("{other:?}"),
        }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.consumer.join().await;
    }
}
