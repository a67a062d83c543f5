//! The reading rule: each committed row is read once, in order per key, under any schedule of writers. The relay's reader
//! passes this test, and two plausible but wrong readers fail it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use devstack::{Postgres, Sql, WorkDir};
use outbox_relay::{
    config::Mapping,
    postgres::{Cursor, Page, Reader},
};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, TestCaseError, TestRunner},
};
use tokio::sync::Mutex;

use crate::{
    harness::{Database, Session},
    schedule::{Found, OutboxReader, Rows, Step, Verdict, Writers, schedules},
};

/// A small page size, so that windows have many pages.
const PAGE_ROWS: usize = 3;
const SCHEDULES: u32 = 1_000;
const STEPS: usize = 60;

/// The relay's reader.
struct SnapshotDifference {
    reader: Reader,
    cursor: Cursor,
    page_rows: usize,
}

impl SnapshotDifference {
    async fn new(database: &Database, page_rows: usize) -> Result<Self> {
        let reader =
            Reader::new(database.connect().await?.into_client(), &Mapping::default()).await?;
        Ok(Self {
            reader,
            cursor: Cursor::beginning(),
            page_rows,
        })
    }
}

impl OutboxReader for SnapshotDifference {
    async fn read_page(&mut self) -> Result<Vec<Found>> {
        // Simulates a restart before each page: converts the cursor to the checkpoint and back.
        let window = self
            .cursor
            .window()
            .map(|w| ((*w.end_snapshot).clone(), w.position));
        self.cursor = Cursor::new(
            self.cursor.start_snapshot().clone(),
            self.cursor.max_seq(),
            window,
        );
        let page = read_page(&self.reader, &mut self.cursor, self.page_rows).await?;
        let mut found = Vec::new();
        for (index, row) in page.rows().enumerate() {
            let row = row?;
            if let Some(position) = page.position_after(index) {
                self.cursor.advance(position);
            }
            found.push((
                row.event_id,
                row.key.to_owned(),
                row.aggregate_version.context("no version")?,
            ));
        }
        if page.is_last() {
            self.cursor.close();
        }
        Ok(found)
    }
}

/// Reads the next page, and opens the next window if none is open, as the relay does.
async fn read_page(reader: &Reader, cursor: &mut Cursor, max_rows: usize) -> Result<Page> {
    if cursor.window().is_some() {
        return Ok(reader.read_page(cursor, max_rows).await?);
    }
    let (now, page) = reader.read_next_window(cursor, max_rows).await?;
    cursor.open(now);
    Ok(page)
}

/// A wrong reader, as in many outboxes: assumes that seq is the order of commits.
struct SeqCursor {
    client: Sql,
    max_seq: i64,
}

impl OutboxReader for SeqCursor {
    async fn read_page(&mut self) -> Result<Vec<Found>> {
        let condition = format!("seq > {}", self.max_seq);
        let (found, last_seq) = select_page(&self.client, &condition).await?;
        self.max_seq = last_seq.unwrap_or(self.max_seq);
        Ok(found)
    }
}

/// A wrong reader: assumes that a snapshot lists all transactions in progress.
struct ListedOnly {
    client: Sql,
    start_snapshot: String,
    max_seq: i64,
}

impl OutboxReader for ListedOnly {
    async fn read_page(&mut self) -> Result<Vec<Found>> {
        let (end_snapshot, _) = query_position(&self.client).await?;
        let (start_snapshot, max_seq) = (&self.start_snapshot, self.max_seq);
        let listed = start_snapshot.rsplit(':').next().unwrap_or_default();
        let pending = format!(
            "pg_visible_in_snapshot(xid, '{end_snapshot}') and (
                 seq > {max_seq} and not pg_visible_in_snapshot(xid, '{start_snapshot}')
                 or seq <= {max_seq} and xid = any ('{{{listed}}}'::xid8[]))"
        );
        let mut found = Vec::new();
        let mut last_read_seq = 0;
        loop {
            let (page, last_seq) = select_page(
                &self.client,
                &format!("{pending} and seq > {last_read_seq}"),
            )
            .await?;
            let Some(last_seq) = last_seq else { break };
            last_read_seq = last_seq;
            found.extend(page);
        }
        self.start_snapshot = end_snapshot;
        self.max_seq = self.max_seq.max(last_read_seq);
        Ok(found)
    }
}

/// Reads a page of rows. Returns them and the last seq.
async fn select_page(client: &Sql, condition: &str) -> Result<(Vec<Found>, Option<i64>)> {
    let sql = format!(
        "select event_id::text, key, aggregate_version, seq from outbox where {condition}
         order by seq limit {PAGE_ROWS}"
    );
    let rows = client.query(&sql, &[]).await?;
    let found = rows.iter().map(|row| {
        let event_id = row.get::<_, &str>(0).parse()?;
        Ok((event_id, row.get(1), row.get(2)))
    });
    let last_seq = rows.last().map(|row| row.get(3));
    Ok((found.collect::<Result<_>>()?, last_seq))
}

/// Returns the current snapshot and the highest seq in it.
async fn query_position(client: &Sql) -> Result<(String, i64)> {
    let sql = "select pg_current_snapshot()::text, coalesce(max(seq), 0) from outbox";
    let row = client.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

#[test]
fn each_committed_row_is_read_once_and_in_order_per_key() -> Result<()> {
    run_schedules("reading", Rows::Own)
}

#[test]
fn rows_of_other_clusters_and_repeated_seqs_are_read_once_and_block_no_other_row() -> Result<()> {
    run_schedules("reading_foreign", Rows::Foreign)
}

fn run_schedules(test: &str, rows: Rows) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (writers, reading) = runtime.block_on(async {
        let database = Database::new(test).await?;
        let writers = Mutex::new(Writers::new(&database, rows).await?);
        // Fewer rows than share a seq.
        let page_rows = if rows == Rows::Foreign { 1 } else { PAGE_ROWS };
        let reading = Mutex::new(SnapshotDifference::new(&database, page_rows).await?);
        Ok::<_, anyhow::Error>((writers, reading))
    })?;
    let config = Config {
        cases: SCHEDULES,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&schedules(STEPS), |steps| {
        let verdict: Result<Verdict> = runtime.block_on(async {
            writers
                .lock()
                .await
                .run(&steps, &mut *reading.lock().await)
                .await
        });
        let verdict = verdict.map_err(|err| TestCaseError::fail(format!("{err:#}")))?;
        proptest::prop_assert_eq!(verdict, Verdict::default());
        Ok(())
    });
    result.map_err(|err| anyhow::anyhow!("{err}"))
}

/// Runs deterministic schedules until the reader fails.
async fn fails<R: OutboxReader>(
    test: &str,
    new: impl AsyncFn(&Database) -> Result<R>,
) -> Result<bool> {
    let database = Database::new(test).await?;
    let mut writers = Writers::new(&database, Rows::Own).await?;
    let mut reading = new(&database).await?;
    let mut runner = TestRunner::deterministic();
    for _ in 0..SCHEDULES {
        let steps: Vec<Step> = schedules(STEPS)
            .new_tree(&mut runner)
            .map_err(|reason| anyhow::anyhow!("{reason}"))?
            .current();
        if writers.run(&steps, &mut reading).await? != Verdict::default() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_by_seq_alone_fails_the_test() -> Result<()> {
    let has_failed = fails("by_seq", async |database| {
        let client = database.connect().await?;
        let (_, max_seq) = query_position(&client).await?;
        Ok(SeqCursor { client, max_seq })
    });
    assert!(has_failed.await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_ignores_transactions_from_xmax_on_fails_the_test() -> Result<()> {
    let has_failed = fails("listed_only", async |database| {
        let client = database.connect().await?;
        let (start_snapshot, max_seq) = query_position(&client).await?;
        Ok(ListedOnly {
            client,
            start_snapshot,
            max_seq,
        })
    });
    assert!(has_failed.await?);
    Ok(())
}

/// A reader, with a database for slow transactions.
struct LateRowsTest {
    database: Database,
    reader: Reader,
    cursor: Cursor,
}

impl LateRowsTest {
    async fn new(database: Database) -> Result<Self> {
        Ok(Self {
            reader: Reader::new(database.connect().await?.into_client(), &Mapping::default())
                .await?,
            cursor: Cursor::beginning(),
            database,
        })
    }

    /// Reads all visible rows in pages of `page_rows` and returns their seqs.
    async fn read(&mut self, page_rows: usize) -> Result<Vec<i64>> {
        let mut seqs = Vec::new();
        loop {
            let page = read_page(&self.reader, &mut self.cursor, page_rows).await?;
            for (index, row) in page.rows().enumerate() {
                if let Some(position) = page.position_after(index) {
                    self.cursor.advance(position);
                }
                seqs.push(row?.seq);
            }
            if page.is_last() {
                self.cursor.close();
                return Ok(seqs);
            }
        }
    }
}

async fn transaction_id(session: &Session) -> Result<u64> {
    let sql = "select pg_current_xact_id()::text";
    let row = session.client.query_one(sql, &[]).await?;
    Ok(row.get::<_, &str>(0).parse()?)
}

/// Opens a transaction with `rows` rows and returns its id.
async fn begin_with_rows(session: &Session, rows: usize) -> Result<u64> {
    let sql = format!(
        "begin;
         insert into outbox (topic, key, event_type, aggregate_version)
         select 'topic', 'key-' || n, 'made', 1 from generate_series(1, {rows}) as n"
    );
    session.client.batch_execute(&sql).await?;
    transaction_id(session).await
}

/// If each page read all remaining late rows, 500,000 of them would take ten times as long as new rows.
#[tokio::test(flavor = "multi_thread")]
async fn late_rows_are_not_fetched_again_for_each_page() -> Result<()> {
    const ROWS: usize = 5_000;
    const PAGE_ROWS: usize = 50;
    // A separate server, because snapshots include the transactions of all databases.
    let work_dir = Arc::new(WorkDir::new()?);
    let postgres = Postgres::start(&work_dir, &["fsync=off"]).await?;
    let mut late = LateRowsTest::new(Database::at(postgres.admin_url().to_owned()).await?).await?;
    let slow = Session::new(&late.database).await?;
    let fast = Session::new(&late.database).await?;
    // The late transaction is listed in the previous snapshot, or has an id from its xmax on.
    for is_listed in [true, false] {
        fast.client.batch_execute("begin").await?;
        if !is_listed {
            transaction_id(&fast).await?;
        }
        let xid = begin_with_rows(&slow, ROWS).await?;
        fast.enqueue("topic", "fast", 1).await?;
        fast.client.batch_execute("commit").await?;
        assert_eq!(late.read(PAGE_ROWS).await?.len(), 1);
        assert_eq!(
            late.cursor.start_snapshot().in_progress().contains(&xid),
            is_listed,
            "{}",
            late.cursor.start_snapshot()
        );
        slow.client.batch_execute("commit").await?;
        let seqs = late.read(PAGE_ROWS).await?;
        assert_eq!((seqs.len(), seqs.is_sorted()), (ROWS, true));
    }
    // Each row is fetched for the first page, for the late transactions, and for its own page.
    drop(late.reader);
    let fetched = usize::try_from(late.database.rows_fetched().await?)?;
    assert!(fetched < 2 * 4 * ROWS, "{fetched} for twice {ROWS} rows");
    postgres.process.stop().await;
    Ok(())
}

/// The statistics of a partition that was just filled are wrong. The planner must not choose an index with which each window
/// reads all rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_after_many_rows_fetches_only_its_own() -> Result<()> {
    const ROWS: usize = 20_000;
    const WINDOWS: usize = 50;
    let mut late = LateRowsTest::new(Database::new("few_of_many").await?).await?;
    let writer = Session::new(&late.database).await?;
    let others = Session::new(&late.database).await?;
    begin_with_rows(&writer, ROWS).await?;
    writer.client.batch_execute("commit").await?;
    assert_eq!(late.read(ROWS).await?.len(), ROWS);
    for statistics in ["none", "all"] {
        if statistics == "all" {
            others.client.batch_execute("analyze").await?;
        }
        for _ in 0..WINDOWS {
            // One transaction is listed in the snapshot, and the next one is from xmax on.
            others.client.batch_execute("begin").await?;
            transaction_id(&others).await?;
            writer.enqueue("topic", "key", 1).await?;
            assert_eq!(late.read(ROWS).await?.len(), 1);
            others.enqueue("topic", "key", 1).await?;
            others.client.batch_execute("commit").await?;
            assert_eq!(late.read(ROWS).await?.len(), 1);
        }
    }
    drop(late.reader);
    let fetched = usize::try_from(late.database.rows_fetched().await?)?;
    assert!(fetched < 2 * ROWS, "{fetched} for {ROWS} rows and 200 more");
    Ok(())
}

/// A generic plan does not know the limit. Right after a partition was filled its statistics are wrong as well.
#[tokio::test(flavor = "multi_thread")]
async fn each_row_of_a_backlog_is_fetched_once_whatever_the_statistics_are() -> Result<()> {
    const ROWS: usize = 20_000;
    const PAGE_ROWS: usize = 200;
    for statistics in ["none", "of an empty table", "of a full table"] {
        let mut late = LateRowsTest::new(Database::new("statistics").await?).await?;
        let writer = Session::new(&late.database).await?;
        // A cursor behind other rows, so that the window can have late rows.
        writer.enqueue("topic", "first", 1).await?;
        assert_eq!(late.read(PAGE_ROWS).await?.len(), 1);
        if statistics == "of an empty table" {
            let sql = "truncate outbox; analyze outbox";
            writer.client.batch_execute(sql).await?;
        }
        begin_with_rows(&writer, ROWS).await?;
        writer.client.batch_execute("commit").await?;
        if statistics == "of a full table" {
            writer.client.batch_execute("analyze outbox").await?;
        }
        assert_eq!(late.read(PAGE_ROWS).await?.len(), ROWS);
        drop(late.reader);
        let fetched = usize::try_from(late.database.rows_fetched().await?)?;
        // By seq, and by transaction id for the first page; that one is read again if a transaction of another test has completed.
        assert!(
            fetched < 4 * ROWS,
            "{statistics}: {fetched} for {ROWS} rows"
        );
    }
    Ok(())
}

/// Together they exceed the size limit of a page.
#[tokio::test(flavor = "multi_thread")]
async fn large_rows_that_share_a_seq_are_all_read() -> Result<()> {
    const ROWS: i64 = 5;
    for is_late in [false, true] {
        let mut late = LateRowsTest::new(Database::new("large_of_one_seq").await?).await?;
        let slow = Session::new(&late.database).await?;
        let fast = Session::new(&late.database).await?;
        slow.client.batch_execute("begin").await?;
        transaction_id(&slow).await?;
        if is_late {
            fast.enqueue("topic", "key", 1).await?;
            late.read(100).await?;
        }
        let sql = format!(
            "insert into outbox (topic, key, event_type, aggregate_version, payload, seq)
             select 'topic', 'key', 'made', 1, convert_to(repeat('x', 7 * 1024 * 1024), 'UTF8'), 1
             from generate_series(1, {ROWS});
             insert into outbox (topic, key, event_type, aggregate_version, seq)
             values ('topic', 'key', 'made', 2, 2);
             commit"
        );
        slow.client.batch_execute(&sql).await?;
        let seqs = late.read(100).await?;
        assert_eq!(seqs, [1, 1, 1, 1, 1, 2], "{is_late}");
    }
    Ok(())
}

/// More transactions than are read one by one.
#[tokio::test(flavor = "multi_thread")]
async fn late_rows_of_many_transactions_are_read_once_and_in_order() -> Result<()> {
    const TRANSACTIONS: usize = 20;
    const ROWS: usize = 10;
    let mut late = LateRowsTest::new(Database::new("many_late").await?).await?;
    let mut sessions = Vec::new();
    for _ in 0..TRANSACTIONS {
        let session = Session::new(&late.database).await?;
        begin_with_rows(&session, ROWS).await?;
        sessions.push(session);
    }
    let fast = Session::new(&late.database).await?;
    fast.enqueue("topic", "fast", 1).await?;
    assert_eq!(late.read(7).await?.len(), 1);
    for session in sessions {
        session.client.batch_execute("commit").await?;
    }
    let seqs = late.read(7).await?;
    assert_eq!((seqs.len(), seqs.is_sorted()), (TRANSACTIONS * ROWS, true));
    Ok(())
}
