//! Random interleavings of transactions with a reader, one statement at a time. Schedules are deterministic, and proptest
//! shrinks a failing one.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use proptest::prelude::*;
use uuid::Uuid;

use crate::harness::{Database, Session};

pub(crate) const WRITERS: usize = 4;
const KEYS: u8 = 6;

/// One step: the session that acts, and two numbers that select its action in the current state.
pub(crate) type Step = (u8, u8, u8);

/// Returns a strategy for schedules of up to `steps` steps.
pub(crate) fn schedules(steps: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..WRITERS as u8 + 2, 0..100_u8, 0..KEYS), 1..steps)
}

/// A row that was read: event id, key and version.
pub(crate) type Found = (Uuid, String, i64);

/// The committed rows: key and version by event id.
type Committed = HashMap<Uuid, (String, i64)>;

/// The kinds of rows that writers insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Rows with the defaults of the table.
    Own,
    /// Also rows of other clusters and careless writers: repeated seqs, no seq, past and future transaction ids.
    Foreign,
}

/// A transaction id in the past, and one that is ahead of this cluster's.
const PAST_XID: u64 = 3;
const FUTURE_XID: u64 = 1 << 40;

/// A reader of the outbox, correct or wrong.
pub(crate) trait OutboxReader {
    /// Reads the next page. An empty page means that no row is pending.
    async fn read_page(&mut self) -> Result<Vec<Found>>;
}

/// The number of violations by a reader.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Committed rows that were not read.
    pub(crate) lost: usize,
    /// Rows that were read but not committed.
    pub(crate) phantom: usize,
    /// Rows that were read more than once.
    pub(crate) repeated: usize,
    /// Rows that were read after a later version of their key.
    pub(crate) inverted: usize,
}

/// The writing sessions.
pub(crate) struct Writers {
    sessions: Vec<Writer>,
    /// Part of the names of prepared transactions, which are shared by the whole server.
    database: String,
    rows: Rows,
    schedules: u32,
    /// Rows with future transaction ids. They are read after these were replaced.
    future_rows: Committed,
}

struct Writer {
    session: Session,
    state: State,
    /// The rows that this transaction has written.
    rows: Vec<Found>,
    /// The keys that this transaction has locked.
    keys: HashSet<u8>,
    savepoint: Option<(usize, HashSet<u8>)>,
    /// A change without its event.
    pending_event: Option<(u8, i64)>,
    /// The number of events with unique keys.
    unique_keys: u32,
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
            // Before the first nextval, last_value already is the first number, which another row would get.
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
                pending_event: None,
                unique_keys: 0,
            });
        }
        Ok(Self {
            sessions,
            database: database.url.clone(),
            rows,
            schedules: 0,
            future_rows: Committed::new(),
        })
    }

    /// Runs a schedule with `reader`, ends all transactions, and compares what was read with what was committed.
    pub(crate) async fn run(
        &mut self,
        steps: &[Step],
        reader: &mut impl OutboxReader,
    ) -> Result<Verdict> {
        self.schedules += 1;
        let mut committed = Committed::new();
        let mut found = Vec::new();
        for &(who, what, key) in steps {
            match usize::from(who) {
                writer if writer < WRITERS => {
                    self.step(writer, what, key, &mut committed).await?;
                }
                _ => found.extend(reader.read_page().await?),
            }
        }
        for writer in 0..WRITERS {
            // Action 0 commits an open transaction.
            while self.sessions[writer].is_busy() {
                self.step(writer, 0, 0, &mut committed).await?;
            }
        }
        if !self.future_rows.is_empty() {
            let client = &self.sessions[0].session.client;
            client
                .batch_execute("select outbox_adopt_foreign_rows()")
                .await?;
            committed.extend(self.future_rows.drain());
        }
        // Twice, because the rest of a window can be empty while the next window has rows.
        for _ in 0..2 {
            loop {
                let page = reader.read_page().await?;
                if page.is_empty() {
                    break;
                }
                found.extend(page);
            }
        }
        Ok(compare(&committed, &found))
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
        // The event follows its change, but other sessions may act in between.
        if let Some((key, version)) = writer.pending_event.take() {
            let event_id = writer
                .session
                .enqueue_event(&key.to_string(), version)
                .await?;
            writer.rows.push((event_id, key.to_string(), version));
            return Ok(());
        }
        let foreign = self.rows == Rows::Foreign;
        // A unique key, because repeated seqs define no order.
        let unique_key = format!("{schedules}-{number}-{}", writer.unique_keys);
        match (writer.state, what) {
            // A replicated or restored row: with the next seq, and committed immediately.
            (State::Idle, 30..40) if foreign => {
                writer.unique_keys += 1;
                let seq = writer.session.next_seq().await?;
                let xid = if what < 35 { PAST_XID } else { FUTURE_XID };
                let event_id = writer
                    .session
                    .enqueue_as(&unique_key, Some(seq), Some(xid))
                    .await?;
                let rows = match xid {
                    PAST_XID => committed,
                    _ => &mut self.future_rows,
                };
                rows.insert(event_id, (unique_key, 1));
                Ok(())
            }
            // A repeated seq.
            (State::Open, 60..75) if foreign => {
                writer.unique_keys += 1;
                let seq = i64::max(1, writer.session.last_seq().await? - i64::from(key / 4));
                let event_id = writer
                    .session
                    .enqueue_as(&unique_key, Some(seq), None)
                    .await?;
                writer.rows.push((event_id, unique_key, 1));
                Ok(())
            }
            // No seq: never read.
            (State::Open, 75..78) if foreign => {
                writer.unique_keys += 1;
                writer.session.enqueue_as(&unique_key, None, None).await?;
                Ok(())
            }
            (State::Idle, 0..30) => {
                // Assigns the transaction id before the first row.
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
                // A key that is locked by another transaction would block this one.
                let free = (0..KEYS)
                    .map(|n| (key + n) % KEYS)
                    .find(|key| !others.contains(key));
                if let Some(key) = free {
                    writer.keys.insert(key);
                    let version = writer.session.change(&key.to_string()).await?;
                    writer.pending_event = Some((key, version));
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
        self.state != State::Idle || self.pending_event.is_some()
    }

    async fn begin(&mut self, sql: &str) -> Result<()> {
        self.session.client.batch_execute(sql).await?;
        self.state = State::Open;
        Ok(())
    }

    /// Ends the transaction. Adds its rows to `committed` if given.
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

fn compare(committed: &Committed, found: &[Found]) -> Verdict {
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
