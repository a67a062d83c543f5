use std::sync::Arc;

use anyhow::Result;
use devstack::{Confirmation, Postgres, Proxy, Sql, WorkDir};

/// Keeps the WAL that a restore needs.
const SETTINGS: [&str; 2] = ["fsync=off", "wal_keep_size=1GB"];
const COUNT: &str = "select count(*) from written";
const TIMELINE: &str =
    "select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int::bigint";

async fn start_primary() -> Result<(Arc<WorkDir>, Postgres, Sql)> {
    let work_dir = Arc::new(WorkDir::new()?);
    let primary = Postgres::start(&work_dir, &SETTINGS).await?;
    let sql = Sql::connect(primary.admin_url()).await?;
    sql.batch_execute("create table written (n bigint)").await?;
    Ok((work_dir, primary, sql))
}

async fn write(sql: &Sql, rows: usize) -> Result<()> {
    for _ in 0..rows {
        sql.batch_execute("insert into written values (1)").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_synchronous_standby_has_every_confirmed_commit() -> Result<()> {
    let (work_dir, mut primary, sql) = start_primary().await?;
    let standby = primary
        .start_standby(&work_dir, "standby", Confirmation::Synchronous)
        .await?;
    let proxy = Proxy::start(primary.address()).await?;
    write(&sql, 50).await?;
    primary.process.kill_and_hold().await;
    standby.promote().await?;
    proxy.set_target(standby.address());
    let sql = Sql::connect(&proxy.url(primary.admin_url())?).await?;
    assert_eq!(sql.count(COUNT).await?, 50);
    assert_eq!(sql.count(TIMELINE).await?, 2);
    write(&sql, 1).await
}

#[tokio::test]
async fn an_asynchronous_standby_lacks_what_was_committed_while_it_lagged() -> Result<()> {
    let (work_dir, mut primary, sql) = start_primary().await?;
    let standby = primary
        .start_standby(&work_dir, "standby", Confirmation::Asynchronous)
        .await?;
    let behind = Sql::connect(standby.admin_url()).await?;
    write(&sql, 10).await?;
    behind.wait_for(COUNT, 10).await?;

    primary.suspend_replication().await?.resume();
    write(&sql, 10).await?;
    behind.wait_for(COUNT, 20).await?;

    let suspended = primary.suspend_replication().await?;
    write(&sql, 10).await?;
    primary.process.kill_and_hold().await;
    drop(suspended);
    standby.promote().await?;
    assert_eq!(behind.count(COUNT).await?, 20);
    Ok(())
}

#[tokio::test]
async fn a_clone_is_independent_and_has_the_same_identity() -> Result<()> {
    const IDENTIFIER: &str = "select system_identifier from pg_control_system()";
    let (work_dir, primary, sql) = start_primary().await?;
    write(&sql, 10).await?;
    let clone = primary.start_clone(&work_dir, "clone").await?;
    let copy = Sql::connect(clone.admin_url()).await?;
    write(&copy, 1).await?;
    assert_eq!(copy.count(COUNT).await?, 11);
    assert_eq!(sql.count(COUNT).await?, 10);
    for query in [IDENTIFIER, TIMELINE] {
        assert_eq!(copy.count(query).await?, sql.count(query).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_restored_cluster_has_the_changes_before_the_target() -> Result<()> {
    let (work_dir, primary, sql) = start_primary().await?;
    write(&sql, 10).await?;
    let backup = primary.back_up(&work_dir, "restored").await?;
    write(&sql, 10).await?;
    let target: String = sql
        .query_one("select pg_current_wal_lsn()::text", &[])
        .await?
        .get(0);
    write(&sql, 10).await?;
    let restored = primary.restore(&work_dir, backup, &target).await?;
    let copy = Sql::connect(restored.admin_url()).await?;
    assert_eq!(copy.count(COUNT).await?, 20);
    assert_eq!(copy.count(TIMELINE).await?, 2);
    assert_eq!(sql.count(COUNT).await?, 30);
    Ok(())
}
