//! Random interleavings of transactions with a reader, one statement at a time: the same schedule
//! always runs the same way, and a failing one shrinks.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use proptest::prelude::*;
use uuid::Uuid;

use crate::harness::{Database, Session};

pub(crate) const WRITERS: usize = 4;
const KEYS: u8 = 6;

/// One step: whose turn it is, and two numbers from which the step is made in the state of then.
pub(crate) type Step = (u8, u8, u8);

/// Schedules of up to `steps` steps.
pub(crate) fn schedules(steps: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..WRITERS as u8 + 2, 0..100_u8, 0..KEYS), 1..steps)
}

/// A row, as a reader finds it: its event's id, its key and its version.
pub(crate) type Found = (Uuid, String, i64);

/// The rows of committed transactions: key and version by the event's id.
type Committed = HashMap<Uuid, (String, i64)>;

/// Which rows are among those that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// As the table numbers them.
    Own,
    /// Also such as other clusters and careless writers leave: numbers that are there already, no number, transaction ids
    /// of the past and of the future.
    Foreign,
}

/// A transaction of long ago, and one that is not begun for long.
const PAST_XID: u64 = 3;
const FUTURE_XID: u64 = 1 << 40;

/// A way to read the outbox, a page a call; the right one or a wrong one.
pub(crate) trait Reading {
    /// The next rows. An empty page means that nothing is due.
    async fn page(&mut self) -> Result<Vec<Found>>;
}

/// What a reader did that it must not do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Committed rows that were not read.
    pub(crate) lost: usize,
    /// Rows that were read and not committed.
    pub(crate) phantom: usize,
    /// Rows that were read more than once.
    pub(crate) repeated: usize,
    /// Rows that were read behind a later version of their key.
    pub(crate) inverted: usize,
}

/// The sessions that write.
pub(crate) struct Writers {
    sessions: Vec<Writer>,
    /// Names their prepared transactions, which are those of the whole server.
    database: String,
    rows: Rows,
    schedules: u32,
    /// Rows whose transaction ids are still to come: they are read when they were given others.
    from_the_future: Committed,
}

struct Writer {
    session: Session,
    state: State,
    /// What this transaction has written, and the keys it has locked.
    rows: Vec<Found>,
    keys: HashSet<u8>,
    savepoint: Option<(usize, HashSet<u8>)>,
    /// A change whose event is not written yet.
    half_done: Option<(u8, i64)>,
    /// Events with keys of their own.
    others: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Open,
    Prepared,
}

impl Writers {
    pub(crate) async fn new(database: &Database, rows: Rows) -> Result<Self> {
        if rows == Rows::Foreign {
            let client = database.connect().await?;
            client
                .batch_execute("alter table outbox alter column seq drop not null")
                .await?;
            // Before its first number a sequence has its first number as the last one: the highest number so far would
            // be one that is there already.
            client.count("select nextval('outbox_seq')").await?;
        }
        let mut sessions = Vec::new();
        for _ in 0..WRITERS {
            sessions.push(Writer {
                session: Session::new(database).await?,
                state: State::Idle,
                rows: Vec::new(),
                keys: HashSet::new(),
                savepoint: None,
                half_done: None,
                others: 0,
            });
        }
        Ok(Self {
            sessions,
            database: database.url.clone(),
            rows,
            schedules: 0,
            from_the_future: Committed::new(),
        })
    }

    /// Runs a schedule with `reading` beside it, ends all transactions, and judges the reading.
    pub(crate) async fn run(
        &mut self,
        steps: &[Step],
        reading: &mut impl Reading,
    ) -> Result<Verdict> {
        self.schedules += 1;
        let mut committed = Committed::new();
        let mut found = Vec::new();
        for &(who, what, key) in steps {
            match usize::from(who) {
                writer if writer < WRITERS => {
                    self.step(writer, what, key, &mut committed).await?;
                }
                _ => found.extend(reading.page().await?),
            }
        }
        for writer in 0..WRITERS {
            // 0 commits whatever is open.
            while self.sessions[writer].is_busy() {
                self.step(writer, 0, 0, &mut committed).await?;
            }
        }
        if !self.from_the_future.is_empty() {
            let client = &self.sessions[0].session.client;
            client
                .batch_execute("select outbox_adopt_foreign_rows()")
                .await?;
            committed.extend(self.from_the_future.drain());
        }
        // Twice, because a page of one window can be empty while the next window has rows.
        for _ in 0..2 {
            loop {
                let page = reading.page().await?;
                if page.is_empty() {
                    break;
                }
                found.extend(page);
            }
        }
        Ok(judge(&committed, &found))
    }

    async fn step(
        &mut self,
        number: usize,
        what: u8,
        key: u8,
        committed: &mut Committed,
    ) -> Result<()> {
        let others: HashSet<u8> = (self.sessions.iter().enumerate())
            .filter(|(other, _)| *other != number)
            .flat_map(|(_, writer)| writer.keys.iter().copied())
            .collect();
        let (database, schedule) = (&self.database, self.schedules);
        let gid = format!("{database} schedule {schedule} writer {number}");
        let schedules = self.schedules;
        let writer = &mut self.sessions[number];
        // An event comes right after its change, but any other session may act in between.
        if let Some((key, version)) = writer.half_done.take() {
            let event_id = writer
                .session
                .enqueue_event(&key.to_string(), version)
                .await?;
            writer.rows.push((event_id, key.to_string(), version));
            return Ok(());
        }
        let foreign = self.rows == Rows::Foreign;
        // Keys of their own: numbers that are given twice say nothing of an order.
        let other_key = format!("{schedules}-{number}-{}", writer.others);
        match (writer.state, what) {
            // As a replica or a restore brings them: with the highest number so far, and committed at once.
            (State::Idle, 30..40) if foreign => {
                writer.others += 1;
                let seq = writer.session.next_seq().await?;
                let xid = if what < 35 { PAST_XID } else { FUTURE_XID };
                let event_id = writer
                    .session
                    .enqueue_as(&other_key, Some(seq), Some(xid))
                    .await?;
                let rows = match xid {
                    PAST_XID => committed,
                    _ => &mut self.from_the_future,
                };
                rows.insert(event_id, (other_key, 1));
                Ok(())
            }
            // With a number that is there already.
            (State::Open, 60..75) if foreign => {
                writer.others += 1;
                let seq = i64::max(1, writer.session.last_seq().await? - i64::from(key / 4));
                let event_id = writer
                    .session
                    .enqueue_as(&other_key, Some(seq), None)
                    .await?;
                writer.rows.push((event_id, other_key, 1));
                Ok(())
            }
            // Without a number: never read.
            (State::Open, 75..78) if foreign => {
                writer.others += 1;
                writer.session.enqueue_as(&other_key, None, None).await?;
                Ok(())
            }
            (State::Idle, 0..30) => {
                // An id early on: it is older than its rows.
                writer.begin("begin; select pg_current_xact_id()").await
            }
            (State::Idle, _) => writer.begin("begin").await,
            (State::Open, 0..25) => writer.end("commit", Some(committed)).await,
            (State::Open, 25..32) => writer.end("rollback", None).await,
            (State::Open, 32..38) => {
                writer
                    .session
                    .client
                    .batch_execute(&format!("prepare transaction '{gid}'"))
                    .await?;
                writer.state = State::Prepared;
                Ok(())
            }
            (State::Open, 38..48) => match writer.savepoint.take() {
                None => {
                    writer.session.client.batch_execute("savepoint s").await?;
                    writer.savepoint = Some((writer.rows.len(), writer.keys.clone()));
                    Ok(())
                }
                Some((rows, keys)) => {
                    writer
                        .session
                        .client
                        .batch_execute("rollback to savepoint s")
                        .await?;
                    writer.rows.truncate(rows);
                    writer.keys = keys;
                    Ok(())
                }
            },
            (State::Open, _) => {
                // A key that another transaction has locked would make this one wait.
                let free = (0..KEYS)
                    .map(|n| (key + n) % KEYS)
                    .find(|key| !others.contains(key));
                if let Some(key) = free {
                    writer.keys.insert(key);
                    let version = writer.session.change(&key.to_string()).await?;
                    writer.half_done = Some((key, version));
                }
                Ok(())
            }
            (State::Prepared, 0..70) => {
                writer
                    .end(&format!("commit prepared '{gid}'"), Some(committed))
                    .await
            }
            (State::Prepared, _) => {
                writer
                    .end(&format!("rollback prepared '{gid}'"), None)
                    .await
            }
        }
    }
}

impl Writer {
    fn is_busy(&self) -> bool {
        self.state != State::Idle || self.half_done.is_some()
    }

    async fn begin(&mut self, sql: &str) -> Result<()> {
        self.session.client.batch_execute(sql).await?;
        self.state = State::Open;
        Ok(())
    }

    /// Ends the transaction; its rows are committed where there is somewhere to note them.
    async fn end(&mut self, sql: &str, committed: Option<&mut Committed>) -> Result<()> {
        self.session.client.batch_execute(sql).await?;
        let rows = self
            .rows
            .drain(..)
            .map(|(event_id, key, version)| (event_id, (key, version)));
        match committed {
            Some(committed) => committed.extend(rows),
            None => drop(rows),
        }
        self.keys.clear();
        self.savepoint = None;
        self.state = State::Idle;
        Ok(())
    }
}

fn judge(committed: &Committed, found: &[Found]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut seen = HashSet::new();
    let mut newest: HashMap<&str, i64> = HashMap::new();
    for (event_id, key, version) in found {
        if !seen.insert(*event_id) {
            verdict.repeated += 1;
        }
        if committed
            .get(event_id)
            .is_none_or(|row| *row != (key.clone(), *version))
        {
            verdict.phantom += 1;
        }
        let newest = newest.entry(key).or_default();
        if version <= newest {
            verdict.inverted += 1;
        }
        *newest = (*newest).max(*version);
    }
    verdict.lost = committed
        .keys()
        .filter(|event_id| !seen.contains(event_id))
        .count();
    verdict
}
