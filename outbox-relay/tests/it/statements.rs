//! The relay's statements in `pg_stat_statements`, where a statement whose text changes with the data displaces those of other
//! programs.

use std::sync::Arc;

use anyhow::Result;
use devstack::{Addresses, Postgres, WorkDir};
use outbox_relay::{
    config::{Mapping, SinkKind},
    postgres::{Cursor, Reader},
};

use crate::{
    harness::{Database, Session, Setup, Writers},
    secure::role,
    truncation::{insert, rows},
};

/// The most entries of the relay.
const MAX_STATEMENTS: usize = 12;
/// More rows than a page of the harness.
const BACKLOG: i64 = 1_000;
const COMMITS: i64 = 500;

/// A server of its own: snapshots include the transactions of all databases.
async fn start_postgres() -> Result<(Postgres, Database)> {
    let work_dir = Arc::new(WorkDir::new()?);
    let settings = ["fsync=off", "shared_preload_libraries=pg_stat_statements"];
    let postgres = Postgres::start(&work_dir, &settings).await?;
    let database = Database::at(postgres.admin_url().to_owned()).await?;
    let sql = "create extension pg_stat_statements";
    database.connect().await?.batch_execute(sql).await?;
    Ok((postgres, database))
}

/// Polls once, and reads the window. Returns the number of its rows.
async fn poll(reader: &Reader, cursor: &mut Cursor) -> Result<usize> {
    let (now, page) = reader.read_next_window(cursor, 1_000).await?;
    cursor.open(now);
    let rows = page.rows().len();
    if let Some(last) = rows.checked_sub(1)
        && let Some(position) = page.position_after(last)
    {
        cursor.advance(position);
    }
    assert!(page.is_last());
    cursor.close();
    Ok(rows)
}

/// Every poll finds that a transaction has completed that was in progress during the last one.
#[tokio::test(flavor = "multi_thread")]
async fn overlapping_transactions_cost_one_statement_a_poll() -> Result<()> {
    const POLLS: usize = 200;
    let (postgres, database) = start_postgres().await?;
    let reader = database.connect().await?.into_client();
    let reader = Reader::new(reader, &Mapping::default()).await?;
    let mut cursor = Cursor::beginning();
    let sessions = [
        Session::new(&database).await?,
        Session::new(&database).await?,
    ];
    let mut rows = 0;
    for turn in 0..POLLS {
        let (opening, ending) = (&sessions[turn % 2], &sessions[(turn + 1) % 2]);
        opening.client.batch_execute("begin").await?;
        opening.enqueue("topic", "key", 1).await?;
        if turn > 0 {
            ending.client.batch_execute("commit").await?;
        }
        // A later transaction that completes: only then the snapshot lists the open one.
        ending
            .client
            .batch_execute("select pg_current_xact_id()")
            .await?;
        rows += poll(&reader, &mut cursor).await?;
    }
    assert_eq!(rows, POLLS - 1);
    let pages = "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
        where query like '%as listed (first, last)%' and query not like '%pg_stat_statements%'";
    let pages = database.connect().await?.count(pages).await?;
    assert!(pages < POLLS as i64 / 10, "{pages} for {POLLS} polls");
    postgres.process.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_do_not_read_the_rows_of_an_open_transaction_again() -> Result<()> {
    const ROWS: i64 = 5_000;
    const POLLS: i64 = 100;
    let (postgres, database) = start_postgres().await?;
    let reader = database.connect().await?.into_client();
    let reader = Reader::new(reader, &Mapping::default()).await?;
    let mut cursor = Cursor::beginning();
    let (open, other) = (
        Session::new(&database).await?,
        Session::new(&database).await?,
    );
    other.enqueue("topic", "key", 1).await?;
    assert_eq!(poll(&reader, &mut cursor).await?, 1);
    let sql = format!(
        "begin;
         insert into outbox (topic, key, event_type, aggregate_version)
         select 'topic', 'key-' || n, 'made', 1 from generate_series(1, {ROWS}) as n"
    );
    open.client.batch_execute(&sql).await?;
    for _ in 0..POLLS {
        assert_eq!(poll(&reader, &mut cursor).await?, 0);
    }
    drop(reader);
    database.rows_fetched().await?;
    let read = "select sum(idx_tup_read)::bigint from pg_stat_user_indexes
        where relname like 'outbox%'";
    let read = database.connect().await?.count(read).await?;
    // Other transactions of the server, such as those of autovacuum, complete now and then.
    assert!(read < ROWS * POLLS / 4, "{read}");
    postgres.process.stop().await;
    Ok(())
}

/// Single commits by several writers, a backlog, late transactions with several pages, a transaction that stays open, truncation.
#[tokio::test(flavor = "multi_thread")]
async fn no_load_adds_statements() -> Result<()> {
    let (postgres, database) = start_postgres().await?;
    let session = Session::new(&database).await?;
    let name = Addresses::unique_name("relay_role");
    role::create(&session.client, &name, "secret").await?;
    let mut setup = Setup::new("statements", SinkKind::Kafka).await?;
    setup.database = Database {
        url: role::url_for(&database.url, &name, "secret")?,
    };

    // A backlog, in a partition that is truncated afterwards.
    let sql = insert(&setup, 3, BACKLOG);
    session.client.batch_execute(&sql).await?;
    let relay = setup.start().await?;
    setup.records(BACKLOG as usize).await?;
    session.client.wait_for(&rows(3), 0).await?;
    let (open, slow) = (
        Session::new(&database).await?,
        Session::new(&database).await?,
    );
    open.client
        .batch_execute("begin; select pg_current_xact_id()")
        .await?;
    slow.client.batch_execute("begin").await?;
    slow.client
        .batch_execute(&insert(&setup, 0, BACKLOG))
        .await?;
    let mut writers = Writers::start(&database, &setup.topic).await?;
    let written = format!("select least(sum(version), {COMMITS})::bigint from aggregates");
    session.client.wait_for(&written, COMMITS).await?;
    slow.client.batch_execute("commit").await?;
    writers.end().await?;
    open.client.batch_execute("commit").await?;
    let total = session.client.count("select count(*) from outbox").await? + BACKLOG;
    setup.records(total as usize).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;

    let sql =
        "select query from pg_stat_statements where userid = $1::text::regrole order by calls";
    let found = session.client.query(sql, &[&name]).await?;
    let found: Vec<&str> = found.iter().map(|row| row.get(0)).collect();
    println!("{} statements", found.len());
    assert!(
        found.len() <= MAX_STATEMENTS,
        "{} statements:\n{}",
        found.len(),
        found.join("\n\n")
    );
    postgres.process.stop().await;
    Ok(())
}
