//! The promises of a projection, on a real Postgres and a real Kafka.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use devstack::{Addresses, PATIENCE, Sql};
use diesel::{QueryResult, sql_types::*};
use diesel_async::{
    AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl as _,
    pooled_connection::{AsyncDieselConnectionManager, deadpool::Pool},
};
use diesel_migrations::MigrationHarness as _;
use projection::{Following, Options, Poison, Projection, Record, State, follow};
use tokio_util::sync::CancellationToken;

/// Counts how often each key was applied, which shows every double application.
struct Counts;

impl Projection for Counts {
    type Change = String;

    fn decode(&self, record: &Record<'_>) -> Result<Option<String>, Poison> {
        match record.required_header("ce_type")? {
            "count" => Ok(Some(record.key_text()?.to_owned())),
            _ => Ok(None),
        }
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, changes: &[String]) -> QueryResult<()> {
        for key in changes {
            diesel::sql_query(
                "insert into counts values ($1, 1)
                 on conflict (key) do update set count = counts.count + 1",
            )
            .bind::<Text, _>(key)
            .execute(conn)
            .await?;
        }
        Ok(())
    }
}

struct Setup {
    name: String,
    pool: Pool<AsyncPgConnection>,
    sql: Sql,
}

struct Running {
    following: Following,
    shutdown: CancellationToken,
}

impl Setup {
    async fn new(test: &str) -> Result<Self> {
        let name = Addresses::unique_name(test);
        let servers = Addresses::shared();
        servers.create_topic(&name, 3).await?;
        let url = servers.create_database(&name).await?;
        let mut harness = AsyncMigrationHarness::new(AsyncPgConnection::establish(&url).await?);
        harness
            .run_pending_migrations(projection::MIGRATIONS)
            .map_err(anyhow::Error::from_boxed)?;
        let sql = "create table counts (
                       key text primary key constraint counts_key_short check (length(key) < 10),
                       count integer not null)";
        let session = Sql::connect(&url).await?;
        session.batch_execute(sql).await?;
        let pool = Pool::builder(AsyncDieselConnectionManager::new(url))
            .max_size(4)
            .build()?;
        Ok(Self {
            name,
            pool,
            sql: session,
        })
    }

    fn follow(&self) -> Running {
        let options = Options {
            brokers: Addresses::shared().brokers().to_owned(),
            name: self.name.clone(),
            topic: self.name.clone(),
            instance_id: Some("only".into()),
        };
        let shutdown = CancellationToken::new();
        let following = follow(
            options,
            Arc::new(Counts),
            self.pool.clone(),
            shutdown.clone(),
        );
        Running {
            following,
            shutdown,
        }
    }

    async fn count(&self, key: &str) -> Result<()> {
        let payload = Some(&b"{}"[..]);
        let headers = [("ce_type", "count")];
        Addresses::shared()
            .write_record(&self.name, Some(key.as_bytes()), payload, &headers)
            .await
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.following.ended().await;
    }
}

const TOTAL: &str = "select coalesce(sum(count), 0) from counts";
const DEAD: &str = "select count(*) from dead_letters";

#[tokio::test(flavor = "multi_thread")]
async fn each_record_is_applied_once_from_the_earliest_on_and_across_restarts() -> Result<()> {
    let setup = Setup::new("once").await?;
    for key in ["a", "b", "c"] {
        setup.count(key).await?;
    }
    for round in 1..=3 {
        let running = setup.follow();
        setup.sql.wait_for(TOTAL, round * 3).await?;
        running.stop().await;
        for key in ["a", "b", "c"] {
            setup.count(key).await?;
        }
    }
    setup
        .sql
        .wait_for("select count(*) from counts where count = 3", 3)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_can_not_be_read_goes_aside_and_the_others_go_on() -> Result<()> {
    let setup = Setup::new("poison").await?;
    let servers = Addresses::shared();
    let running = setup.follow();
    servers
        .write_record(
            &setup.name,
            Some(b"a"),
            Some(b"\xff\x00"),
            &[("other", "x")],
        )
        .await?;
    // A compacted topic takes no record without a key, but any bytes for one.
    servers
        .write_record(
            &setup.name,
            Some(b"\xff"),
            Some(b"{}"),
            &[("ce_type", "count")],
        )
        .await?;
    servers
        .write_record(&setup.name, Some(b"a"), None, &[("ce_type", "unheard of")])
        .await?;
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 1).await?;
    setup.sql.wait_for(DEAD, 2).await?;
    running.stop().await;
    let untouched = "select count(*) from dead_letters
        where (key = 'a' and payload = '\\xff00' and header_names = '{other}'
               and header_values = array['x'::bytea] and error_class = 'header')
           or (key = '\\xff' and error_class = 'key')";
    setup.sql.wait_for(untouched, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_constraint_refuses_goes_aside_alone() -> Result<()> {
    let setup = Setup::new("constraint").await?;
    for key in ["a", "far too long", "b", "much too long", "c"] {
        setup.count(key).await?;
    }
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 3).await?;
    setup.sql.wait_for(DEAD, 2).await?;
    running.stop().await;
    setup
        .sql
        .wait_for(
            "select count(*) from dead_letters where error = 'counts_key_short'",
            2,
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_overtaken_applies_nothing_twice() -> Result<()> {
    let setup = Setup::new("overtaken").await?;
    let running = setup.follow();
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 1).await?;
    // What a second consumer of the partition does: it has already applied the next record.
    setup
        .sql
        .batch_execute(
            "update projection_offsets set next_offset = next_offset + 1 where next_offset > 0",
        )
        .await?;
    setup.count("a").await?;
    setup.count("a").await?;
    setup
        .sql
        .wait_for("select max(next_offset) from projection_offsets", 3)
        .await?;
    setup.sql.wait_for(TOTAL, 2).await?;
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_the_topic_does_not_have_stops_the_projection() -> Result<()> {
    let setup = Setup::new("recreated").await?;
    setup.count("a").await?;
    let running = setup.follow();
    setup.sql.wait_for(TOTAL, 1).await?;
    running.stop().await;
    setup
        .sql
        .batch_execute("update projection_offsets set next_offset = 1000")
        .await?;
    let running = setup.follow();
    let mut state = running.following.state();
    let stopped = state.wait_for(|state| matches!(state, State::Stopped(_)));
    tokio::time::timeout(PATIENCE, stopped)
        .await
        .context("went on")??;
    running.stop().await;
    setup.sql.wait_for(TOTAL, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_fails_is_waited_for() -> Result<()> {
    let setup = Setup::new("failing").await?;
    let running = setup.follow();
    setup
        .sql
        .batch_execute("alter table counts rename to away")
        .await?;
    setup.count("a").await?;
    let mut state = running.following.state();
    let failing = state.wait_for(|s| matches!(s, State::Failing(why) if why.contains("counts")));
    tokio::time::timeout(PATIENCE, failing)
        .await
        .context("no failure")??;
    setup
        .sql
        .batch_execute("alter table away rename to counts")
        .await?;
    setup.sql.wait_for(TOTAL, 1).await?;
    let mut state = running.following.state();
    let again = state.wait_for(|state| *state == State::Following);
    tokio::time::timeout(PATIENCE, again)
        .await
        .context("still failing")??;
    running.stop().await;
    setup.sql.wait_for(DEAD, 0).await
}
