//! Those who write to the outbox all the while, and know nothing of the migration.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use devstack::Sql;
use tokio::task::JoinSet;
use tokio_postgres::Statement;
use tokio_util::sync::CancellationToken;

/// Sessions, each with keys of its own: nobody waits for anybody but for what the migration does.
const SESSIONS: u64 = 4;
/// Keys that a session has in use, and after how many transactions there is a new one in place of
/// the oldest: of every moment there are keys that had their last version in it.
const KEYS_IN_USE: u64 = 16;
const NEW_KEY_EVERY: u64 = 8;
/// Rows of a transaction, on average, from one to four.
const ROWS_PER_TRANSACTION: f64 = 2.5;
/// Of so many transactions one is rolled back.
const ROLLBACK_EVERY: u64 = 11;
/// Of so many one rolls back to a savepoint, and goes on.
const SAVEPOINT_EVERY: u64 = 7;

/// The next version of an aggregate, with its event, in one statement: as services do, the
/// aggregate's row is changed first. `$1` is its key, `$2` the type of aggregate.
pub(super) const CHANGE: &str = "
    with changed as (
        insert into aggregates as a (key, version) values ($1, 1)
        on conflict (key) do update set version = a.version + 1
        returning version
    )
    insert into outboxevent (id, aggregatetype, aggregateid, type, payload)
    select gen_random_uuid(), $2, $1, 'OrderChanged', jsonb_build_object(
        'version', version,
        'at_ms', (extract(epoch from clock_timestamp()) * 1000)::bigint,
        'note', repeat('x', 100))
    from changed";

/// Running, each on a connection of its own.
pub(super) struct Writers {
    sessions: JoinSet<Result<Vec<Transaction>>>,
    end: CancellationToken,
}

/// From its first statement to the answer to its last one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    began: Instant,
    ended: Instant,
}

impl Writers {
    /// Starts them; together they write so many rows a second, whether or not what they wrote
    /// before was slow.
    pub(super) async fn start(database_url: &str, rows_per_s: u64) -> Result<Self> {
        let end = CancellationToken::new();
        let mut sessions = JoinSet::new();
        let transactions_per_s = rows_per_s as f64 / ROWS_PER_TRANSACTION / SESSIONS as f64;
        let interval = Duration::from_secs_f64(1.0 / transactions_per_s);
        for number in 0..SESSIONS {
            let sql = Sql::connect(database_url).await?;
            let change = sql.prepare(CHANGE).await?;
            let writer = Writer {
                number,
                sql,
                change,
            };
            sessions.spawn(writer.run(interval, end.clone()));
        }
        Ok(Self { sessions, end })
    }

    /// Ends them, and returns what they did.
    pub(super) async fn finish(mut self) -> Result<Vec<Transaction>> {
        self.end.cancel();
        let mut all = Vec::new();
        while let Some(transactions) = self.sessions.join_next().await {
            all.extend(transactions?.context("a writer failed")?);
        }
        Ok(all)
    }
}

/// The longest that a transaction took of those that were open in this time.
pub(super) fn longest(transactions: &[Transaction], from: Instant, to: Instant) -> Duration {
    let meanwhile = |transaction: &&Transaction| transaction.began < to && transaction.ended > from;
    let took = |transaction: &Transaction| transaction.ended - transaction.began;
    let meanwhile = transactions.iter().filter(meanwhile);
    meanwhile.map(took).max().unwrap_or_default()
}

struct Writer {
    number: u64,
    sql: Sql,
    change: Statement,
}

impl Writer {
    async fn run(self, interval: Duration, end: CancellationToken) -> Result<Vec<Transaction>> {
        let start = Instant::now();
        let mut transactions = Vec::new();
        for turn in 0.. {
            let due = start + interval.mul_f64(turn as f64);
            tokio::time::sleep_until(due.into()).await;
            if end.is_cancelled() {
                break;
            }
            let began = Instant::now();
            self.write(turn).await?;
            let ended = Instant::now();
            transactions.push(Transaction { began, ended });
        }
        Ok(transactions)
    }

    async fn write(&self, turn: u64) -> Result<()> {
        self.sql.batch_execute("begin").await?;
        for row in 0..=turn % 4 {
            self.change(turn, row).await?;
        }
        if turn.is_multiple_of(SAVEPOINT_EVERY) {
            self.sql.batch_execute("savepoint attempt").await?;
            self.change(turn, 0).await?;
            self.sql.batch_execute("rollback to attempt").await?;
            self.change(turn, 1).await?;
        }
        let is_kept = !turn.is_multiple_of(ROLLBACK_EVERY);
        let end = if is_kept { "commit" } else { "rollback" };
        self.sql.batch_execute(end).await?;
        Ok(())
    }

    async fn change(&self, turn: u64, row: u64) -> Result<()> {
        let in_use = (turn * 7 + row) % KEYS_IN_USE;
        let key = format!("{}-{}", self.number, turn / NEW_KEY_EVERY + in_use);
        self.sql.execute(&self.change, &[&key, &"order"]).await?;
        Ok(())
    }
}

/// What the keys of transactions begin with that take their time.
pub(super) const LONG_KEY: &str = "long-";

/// A transaction that takes its time.
pub(super) struct Long {
    sql: Sql,
    key: String,
}

impl Long {
    /// Begins it, so that it has an id: older than whatever begins after it.
    pub(super) async fn begin(database_url: &str, name: &str) -> Result<Self> {
        let sql = Sql::connect(database_url).await?;
        sql.batch_execute("begin; select pg_current_xact_id()")
            .await?;
        let key = format!("{LONG_KEY}{name}");
        Ok(Self { sql, key })
    }

    /// Writes an event, and so holds a lock on the outbox until its end.
    pub(super) async fn write(&self) -> Result<()> {
        self.sql.execute(CHANGE, &[&self.key, &"order"]).await?;
        Ok(())
    }

    /// Commits, and writes the same aggregate's next version.
    pub(super) async fn commit(self) -> Result<()> {
        self.sql.batch_execute("commit").await?;
        self.write().await
    }

    /// Writes an event now, and commits it in the background after a while.
    pub(super) async fn write_and_commit_after(
        self,
        pause: Duration,
    ) -> Result<tokio::task::JoinHandle<Result<()>>> {
        self.write().await?;
        Ok(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            self.commit().await
        }))
    }
}
