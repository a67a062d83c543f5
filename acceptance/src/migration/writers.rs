//! Sessions that write to the outbox during the whole migration.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use devstack::Sql;
use tokio::task::JoinSet;
use tokio_postgres::Statement;
use tokio_util::sync::CancellationToken;

/// Number of sessions. Each has its own keys, so writers wait only for the migration.
const SESSIONS: u64 = 4;
/// Keys in use by a session, and the transactions after which a new key replaces the oldest one. At
/// any time some keys get their last version.
const KEYS_IN_USE: u64 = 16;
const NEW_KEY_EVERY: u64 = 8;
/// Average number of rows in a transaction; it has one to four.
const ROWS_PER_TRANSACTION: f64 = 2.5;
/// One in this many transactions is rolled back.
const ROLLBACK_EVERY: u64 = 11;
/// One in this many transactions rolls back to a savepoint and continues.
const SAVEPOINT_EVERY: u64 = 7;

/// Writes the next version of an aggregate and its event in one statement. As in a service, the
/// aggregate's row changes first. `$1` is its key, `$2` the aggregate type.
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

/// Running sessions, each on its own connection.
pub(super) struct Writers {
    sessions: JoinSet<Result<Vec<Transaction>>>,
    stop: CancellationToken,
}

/// The time from the first statement to the result of the last one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    began: Instant,
    ended: Instant,
}

impl Writers {
    /// Starts sessions that together write this many rows per second. The schedule does not wait for
    /// slow transactions.
    pub(super) async fn start(database_url: &str, rows_per_s: u64) -> Result<Self> {
        let stop = CancellationToken::new();
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
            sessions.spawn(writer.run(interval, stop.clone()));
        }
        Ok(Self { sessions, stop })
    }

    /// Stops the sessions and returns their transactions.
    pub(super) async fn finish(mut self) -> Result<Vec<Transaction>> {
        self.stop.cancel();
        let mut all = Vec::new();
        while let Some(transactions) = self.sessions.join_next().await {
            all.extend(transactions?.context("a writer failed")?);
        }
        Ok(all)
    }
}

/// Returns the duration of the longest transaction that was open in this time.
pub(super) fn longest_duration(
    transactions: &[Transaction],
    from: Instant,
    to: Instant,
) -> Duration {
    let was_open = |transaction: &&Transaction| transaction.began < to && transaction.ended > from;
    let took = |transaction: &Transaction| transaction.ended - transaction.began;
    let open = transactions.iter().filter(was_open);
    open.map(took).max().unwrap_or_default()
}

struct Writer {
    number: u64,
    sql: Sql,
    change: Statement,
}

impl Writer {
    async fn run(self, interval: Duration, stop: CancellationToken) -> Result<Vec<Transaction>> {
        let start = Instant::now();
        let mut transactions = Vec::new();
        for turn in 0.. {
            let due = start + interval.mul_f64(turn as f64);
            tokio::time::sleep_until(due.into()).await;
            if stop.is_cancelled() {
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

/// Prefix of the keys of long transactions.
pub(super) const LONG_KEY: &str = "long-";

/// A transaction that stays open until `commit`.
pub(super) struct LongTransaction {
    sql: Sql,
    key: String,
}

impl LongTransaction {
    /// Begins the transaction and assigns its id, which makes it older than every later transaction.
    pub(super) async fn begin(database_url: &str, name: &str) -> Result<Self> {
        let sql = Sql::connect(database_url).await?;
        sql.batch_execute("begin; select pg_current_xact_id()")
            .await?;
        let key = format!("{LONG_KEY}{name}");
        Ok(Self { sql, key })
    }

    /// Writes an event, which locks the outbox until the transaction ends.
    pub(super) async fn write(&self) -> Result<()> {
        self.sql.execute(CHANGE, &[&self.key, &"order"]).await?;
        Ok(())
    }

    /// Commits, and then writes the next version of the same aggregate.
    pub(super) async fn commit(self) -> Result<()> {
        self.sql.batch_execute("commit").await?;
        self.write().await
    }

    /// Writes an event now and commits it in the background after the pause.
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
