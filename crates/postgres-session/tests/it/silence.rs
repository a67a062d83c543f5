//! A server that falls silent, while TCP reports no error.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use devstack::{Fault, Proxy, eventually};
use diesel_async::RunQueryDsl as _;
use postgres_session::{ConnectError, Pool, connect_diesel, is_unavailable};

use crate::{OPTIONS, create_database};

/// More than any limit in [`OPTIONS`].
const PATIENCE: Duration = Duration::from_secs(20);

async fn query(pool: &Pool) -> Result<()> {
    let mut session = pool.get().await?;
    diesel::sql_query("select 1").execute(&mut *session).await?;
    Ok(())
}

#[tokio::test]
async fn a_statement_without_a_response_fails_and_closes_its_session() -> Result<()> {
    let (url, _) = create_database("silent").await?;
    let proxy = Proxy::start_for(&url).await?;
    let mut session = connect_diesel(&proxy.url(&url)?.as_str().into(), &OPTIONS).await?;
    proxy.silence_open_connections();
    let statement = diesel::sql_query("select 1").execute(&mut session);
    let failed = tokio::time::timeout(PATIENCE, statement)
        .await
        .context("still waiting")?;
    let err = failed.err().context("accepted")?;
    assert!(is_unavailable(&err), "{err}");
    Ok(())
}

/// The limit is on the silence, not on the statement.
#[tokio::test]
async fn a_long_result_is_received() -> Result<()> {
    let (url, _) = create_database("long").await?;
    let mut session = connect_diesel(&url.as_str().into(), &OPTIONS).await?;
    let started = Instant::now();
    // A row of 10 kB every 0.4 s: Postgres sends each one as soon as its buffer is full.
    let rows = "select repeat('x', 10000) from generate_series(1, 10), pg_sleep(0.4 * generate_series / generate_series)";
    let count = diesel::sql_query(rows).execute(&mut session).await?;
    assert_eq!(count, 10);
    assert!(
        started.elapsed() > Duration::from_secs(2),
        "shorter than the limit"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_that_never_responds_is_reported_with_its_address() -> Result<()> {
    let (url, _) = create_database("mute").await?;
    let proxy = Proxy::start_for(&url).await?;
    proxy.set(Fault::Silence).await?;
    let options = postgres_session::SessionOptions {
        connect_timeout: Duration::from_secs(1),
        ..OPTIONS
    };
    let connecting = postgres_session::connect(&proxy.url(&url)?.as_str().into(), &options).await;
    let err = connecting.err().context("connected")?;
    assert!(matches!(err, ConnectError::Timeout { .. }), "{err}");
    assert!(err.to_string().contains(&proxy.address()), "{err}");
    Ok(())
}

/// All idle sessions of a pool are open to the same silent peer. The first that does not respond condemns the others.
#[tokio::test]
async fn a_pool_replaces_all_silent_sessions_at_once() -> Result<()> {
    let (url, _) = create_database("pool").await?;
    let proxy = Proxy::start_for(&url).await?;
    let pool = Pool::new(
        proxy.url(&url)?.as_str().into(),
        OPTIONS,
        8,
        Duration::from_secs(5),
    );
    let sessions: Vec<_> = futures_util::future::try_join_all((0..8).map(|_| pool.get())).await?;
    drop(sessions);
    proxy.silence_open_connections();
    let started = Instant::now();
    eventually("a session that responds", async || {
        Ok(query(&pool).await.ok())
    })
    .await?;
    for _ in 0..8 {
        query(&pool).await?;
    }
    // One after the other they would take 8 times the limit.
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_silent_first_host_does_not_block_the_second() -> Result<()> {
    let (url, _) = create_database("hosts").await?;
    let proxy = Proxy::start_for(&url).await?;
    proxy.set(Fault::Silence).await?;
    let (credentials, rest) = url.split_once('@').context("credentials")?;
    let both = format!("{credentials}@{},{rest}", proxy.address());
    for mode in ["prefer", "disable"] {
        let url = format!("{both}?sslmode={mode}").as_str().into();
        postgres_session::connect(&url, &OPTIONS).await?;
        connect_diesel(&url, &OPTIONS).await?;
    }
    Ok(())
}

/// A session keeps the access that it was opened with, whatever has become of the server.
#[tokio::test]
async fn a_pool_replaces_sessions_that_are_read_only() -> Result<()> {
    let (url, sql) = create_database("frozen_pool").await?;
    let setting = "default_transaction_read_only";
    sql.set_database_default(setting, "on").await?;
    let pool = Pool::new(url.as_str().into(), OPTIONS, 1, Duration::from_secs(5));
    let create = async |name: &str| {
        let mut session = pool.get().await?;
        let statement = format!("create table {name} (id integer)");
        Ok::<_, anyhow::Error>(diesel::sql_query(statement).execute(&mut *session).await?)
    };
    assert!(create("frozen").await.is_err());
    sql.batch_execute("set transaction_read_only = off").await?;
    sql.set_database_default(setting, "off").await?;
    eventually("a writable session", async || {
        Ok(create("thawed").await.ok())
    })
    .await?;
    Ok(())
}
