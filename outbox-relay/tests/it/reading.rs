//! The reading rule: every committed row once, in order per key, whatever the writers do. The
//! product's reader passes; two readers that look right fail the same test.

use anyhow::Result;
use devstack::Sql;
use outbox_relay::{reader::Reader, window::Cursor};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, TestRunner},
};
use tokio::sync::Mutex;

use crate::{
    harness::Database,
    schedule::{Found, Reading, Step, Verdict, Writers, schedules},
};

/// Rows of a page: few, so that windows have many pages.
const PAGE_ROWS: usize = 3;
const SCHEDULES: u32 = 1_000;
const STEPS: usize = 60;

/// The product's reader.
struct SnapshotDifference {
    reader: Reader,
    cursor: Cursor,
}

impl SnapshotDifference {
    async fn new(database: &Database) -> Result<Self> {
        let reader = Reader::new(database.connect().await?.into_client()).await?;
        Ok(Self {
            reader,
            cursor: Cursor::beginning(),
        })
    }
}

impl Reading for SnapshotDifference {
    async fn page(&mut self) -> Result<Vec<Found>> {
        if self.cursor.window().is_none() {
            self.cursor.open(self.reader.snapshot().await?);
        }
        // As after a restart, at any page: through the checkpoint's form.
        let window = self
            .cursor
            .window()
            .map(|w| ((*w.upto).clone(), w.done_seq));
        self.cursor = Cursor::new(self.cursor.seen().clone(), self.cursor.max_seq(), window);
        let page = self.reader.page(&self.cursor, PAGE_ROWS).await?;
        let mut found = Vec::new();
        for row in page.rows() {
            let row = row?;
            self.cursor.advance(row.seq);
            found.push((row.seq, row.key.to_owned(), row.aggregate_version));
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
        let found = select(&self.client, &condition).await?;
        self.max_seq = found.last().map_or(self.max_seq, |row| row.0);
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
            let page = select(&self.client, &format!("{due} and seq > {done_seq}")).await?;
            let Some(last) = page.last() else { break };
            done_seq = last.0;
            found.extend(page);
        }
        self.seen = upto;
        self.max_seq = self.max_seq.max(done_seq);
        Ok(found)
    }
}

async fn select(client: &Sql, condition: &str) -> Result<Vec<Found>> {
    let sql = format!(
        "select seq, key, aggregate_version from outbox where {condition}
         order by seq limit {PAGE_ROWS}"
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect())
}

/// The present snapshot, and the highest seq in it.
async fn position(client: &Sql) -> Result<(String, i64)> {
    let sql = "select pg_current_snapshot()::text, coalesce(max(seq), 0) from outbox";
    let row = client.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

#[test]
fn every_committed_row_is_read_once_and_in_order_per_key() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (writers, reading) = runtime.block_on(async {
        let database = Database::new("reading").await?;
        let writers = Mutex::new(Writers::new(&database).await?);
        let reading = Mutex::new(SnapshotDifference::new(&database).await?);
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
        proptest::prop_assert_eq!(verdict.unwrap(), Verdict::default());
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
    let mut writers = Writers::new(&database).await?;
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
