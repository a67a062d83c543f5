//! The reading rule: every committed row once, in order per key, whatever the writers do. The
//! product's reader passes; two readers that look right fail the same test.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use devstack::{Home, Postgres, Sql};
use outbox_relay::{
    config::Mapping,
    postgres::{Cursor, Reader},
};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, TestCaseError, TestRunner},
};
use tokio::sync::Mutex;

use crate::{
    harness::{Database, Session},
    schedule::{Found, Reading, Rows, Step, Verdict, Writers, schedules},
};

/// Rows of a page: few, so that windows have many pages.
const PAGE_ROWS: usize = 3;
const SCHEDULES: u32 = 1_000;
const STEPS: usize = 60;

/// The product's reader.
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

impl Reading for SnapshotDifference {
    async fn page(&mut self) -> Result<Vec<Found>> {
        if self.cursor.window().is_none() {
            self.cursor.open(self.reader.take_snapshot().await?);
        }
        // As after a restart, at any page: through the checkpoint's form.
        let window = self.cursor.window().map(|w| ((*w.upto).clone(), w.done));
        self.cursor = Cursor::new(self.cursor.seen().clone(), self.cursor.max_seq(), window);
        let page = self.reader.read_page(&self.cursor, self.page_rows).await?;
        let mut found = Vec::new();
        for (index, row) in page.rows().enumerate() {
            let row = row?;
            if let Some(position) = page.position_after(index)? {
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

/// Wrong: takes seq for the order of commits, as most outboxes do.
struct SeqCursor {
    client: Sql,
    max_seq: i64,
}

impl Reading for SeqCursor {
    async fn page(&mut self) -> Result<Vec<Found>> {
        let condition = format!("seq > {}", self.max_seq);
        let (found, last_seq) = select(&self.client, &condition).await?;
        self.max_seq = last_seq.unwrap_or(self.max_seq);
        Ok(found)
    }
}

/// Wrong: takes the listed transactions of a snapshot for all that were in progress.
struct ListedOnly {
    client: Sql,
    seen: String,
    max_seq: i64,
}

impl Reading for ListedOnly {
    async fn page(&mut self) -> Result<Vec<Found>> {
        let (upto, _) = position(&self.client).await?;
        let (seen, max_seq) = (&self.seen, self.max_seq);
        let listed = seen.rsplit(':').next().unwrap_or_default();
        let due = format!(
            "pg_visible_in_snapshot(xid, '{upto}') and (
                 seq > {max_seq} and not pg_visible_in_snapshot(xid, '{seen}')
                 or seq <= {max_seq} and xid = any ('{{{listed}}}'::xid8[]))"
        );
        let mut found = Vec::new();
        let mut done_seq = 0;
        loop {
            let (page, last_seq) =
                select(&self.client, &format!("{due} and seq > {done_seq}")).await?;
            let Some(last_seq) = last_seq else { break };
            done_seq = last_seq;
            found.extend(page);
        }
        self.seen = upto;
        self.max_seq = self.max_seq.max(done_seq);
        Ok(found)
    }
}

/// A page of rows, and the seq of the last one.
async fn select(client: &Sql, condition: &str) -> Result<(Vec<Found>, Option<i64>)> {
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

/// The present snapshot, and the highest seq in it.
async fn position(client: &Sql) -> Result<(String, i64)> {
    let sql = "select pg_current_snapshot()::text, coalesce(max(seq), 0) from outbox";
    let row = client.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

#[test]
fn every_committed_row_is_read_once_and_in_order_per_key() -> Result<()> {
    no_schedule_breaks_reading("reading", Rows::Own)
}

#[test]
fn rows_of_other_clusters_and_with_repeated_numbers_are_read_once_and_keep_nobody_back()
-> Result<()> {
    no_schedule_breaks_reading("reading_foreign", Rows::Foreign)
}

fn no_schedule_breaks_reading(test: &str, rows: Rows) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (writers, reading) = runtime.block_on(async {
        let database = Database::new(test).await?;
        let writers = Mutex::new(Writers::new(&database, rows).await?);
        // Fewer than share a seq.
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

/// The same schedules every time, until one shows that the reader is wrong.
async fn is_caught<R: Reading>(
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
async fn a_reader_by_seq_alone_is_caught() -> Result<()> {
    let caught = is_caught("by_seq", async |database| {
        let client = database.connect().await?;
        let (_, max_seq) = position(&client).await?;
        Ok(SeqCursor { client, max_seq })
    });
    assert!(caught.await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_trusts_the_list_of_a_snapshot_is_caught() -> Result<()> {
    let caught = is_caught("listed_only", async |database| {
        let client = database.connect().await?;
        let (seen, max_seq) = position(&client).await?;
        Ok(ListedOnly {
            client,
            seen,
            max_seq,
        })
    });
    assert!(caught.await?);
    Ok(())
}

/// A reader in a database where somebody is late.
struct Late {
    database: Database,
    reader: Reader,
    cursor: Cursor,
}

impl Late {
    async fn new(database: Database) -> Result<Self> {
        Ok(Self {
            reader: Reader::new(database.connect().await?.into_client(), &Mapping::default())
                .await?,
            cursor: Cursor::beginning(),
            database,
        })
    }

    /// Reads what is visible, in pages of so many rows; returns the seqs.
    async fn read(&mut self, page_rows: usize) -> Result<Vec<i64>> {
        self.cursor.open(self.reader.take_snapshot().await?);
        let mut seqs = Vec::new();
        while self.cursor.window().is_some() {
            let page = self.reader.read_page(&self.cursor, page_rows).await?;
            for (index, row) in page.rows().enumerate() {
                if let Some(position) = page.position_after(index)? {
                    self.cursor.advance(position);
                }
                seqs.push(row?.seq);
            }
            if page.is_last() {
                self.cursor.close();
            }
        }
        Ok(seqs)
    }
}

async fn transaction(session: &Session) -> Result<u64> {
    let sql = "select pg_current_xact_id()::text";
    let row = session.client.query_one(sql, &[]).await?;
    Ok(row.get::<_, &str>(0).parse()?)
}

/// Opens a transaction with so many rows; returns its id.
async fn begin_with_rows(session: &Session, rows: usize) -> Result<u64> {
    let sql = format!(
        "begin;
         insert into outbox (topic, key, event_type, aggregate_version)
         select 'topic', 'key-' || n, 'made', 1 from generate_series(1, {rows}) as n"
    );
    session.client.batch_execute(&sql).await?;
    transaction(session).await
}

/// Each page would otherwise look at all that is left: 500,000 rows took ten times as long as in time.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_late_are_not_looked_at_again_with_every_page() -> Result<()> {
    const ROWS: usize = 5_000;
    const PAGE_ROWS: usize = 50;
    // Of its own, because transactions in other databases have their place in snapshots, too.
    let home = Arc::new(Home::new()?);
    let postgres = Postgres::start(&home, &["fsync=off"]).await?;
    let mut late = Late::new(Database::at(postgres.admin_url().to_owned()).await?).await?;
    let slow = Session::new(&late.database).await?;
    let fast = Session::new(&late.database).await?;
    // The id of the late transaction is listed in the snapshot before it, or is from its xmax on.
    for is_listed in [true, false] {
        fast.client.batch_execute("begin").await?;
        if !is_listed {
            transaction(&fast).await?;
        }
        let xid = begin_with_rows(&slow, ROWS).await?;
        fast.enqueue("topic", "fast", 1).await?;
        fast.client.batch_execute("commit").await?;
        assert_eq!(late.read(PAGE_ROWS).await?.len(), 1);
        assert_eq!(
            late.cursor.seen().in_progress().contains(&xid),
            is_listed,
            "{}",
            late.cursor.seen()
        );
        slow.client.batch_execute("commit").await?;
        let seqs = late.read(PAGE_ROWS).await?;
        assert_eq!((seqs.len(), seqs.is_sorted()), (ROWS, true));
    }
    // With the first page, with the question where they are, and with the page of each.
    drop(late.reader);
    let fetched = usize::try_from(late.database.rows_fetched().await?)?;
    assert!(fetched < 2 * 4 * ROWS, "{fetched} for twice {ROWS} rows");
    postgres.process.stop().await;
    Ok(())
}

/// The planner knows nothing of a partition that was filled a moment ago, and believes what it knows of
/// one. It must not take an index in which all rows are looked at, with every window.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_behind_many_rows_looks_at_its_own() -> Result<()> {
    const ROWS: usize = 20_000;
    const WINDOWS: usize = 50;
    let mut late = Late::new(Database::new("few_of_many").await?).await?;
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
            // Transactions that come and go: listed in one snapshot, and beyond the next one's xmax.
            others.client.batch_execute("begin").await?;
            transaction(&others).await?;
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

/// A page of them would be too large.
#[tokio::test(flavor = "multi_thread")]
async fn large_rows_that_share_a_seq_are_all_read() -> Result<()> {
    const ROWS: i64 = 5;
    for is_late in [false, true] {
        let mut late = Late::new(Database::new("large_of_one_seq").await?).await?;
        let slow = Session::new(&late.database).await?;
        let fast = Session::new(&late.database).await?;
        slow.client.batch_execute("begin").await?;
        transaction(&slow).await?;
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

/// Too many to look at each by itself.
#[tokio::test(flavor = "multi_thread")]
async fn late_rows_of_many_transactions_are_read_once_and_in_order() -> Result<()> {
    const TRANSACTIONS: usize = 20;
    const ROWS: usize = 10;
    let mut late = Late::new(Database::new("many_late").await?).await?;
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
