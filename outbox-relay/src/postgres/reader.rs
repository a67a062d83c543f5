//! Reads what is due, a page at a time. The SQL of a window is in `due`, and `page` decodes what
//! comes back.

mod page;
mod pending;

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

pub(crate) use self::page::COLUMNS;
pub use self::page::{Page, Row};
use self::pending::{MAX_BRANCHES, Order, PageQuery, Stragglers, late_transactions_sql};
use crate::{
    config::Mapping,
    hints,
    postgres::{
        session::ANSWER_TIMEOUT,
        window::{Cursor, MalformedSnapshot, Position, Snapshot},
    },
};

/// A page that grows beyond this is cut there; the rest is read again with the next page. It
/// bounds the memory of a page by this much and one row.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Plans for the outbox must not depend on statistics, which are wrong right after a partition was
/// filled or emptied: rows are found by the two indexes, whatever the planner believes.
///
/// Nor may it look for a check that excludes a partition: none ever does, and to read the checks of all
/// partitions anew took two thirds of what a look at an outbox cost the database.
///
/// Whoever locks the outbox for longer than a moment is told of, instead of waited for in silence.
const SESSION: &str = "set enable_seqscan = off;
    set enable_bitmapscan = off;
    set constraint_exclusion = off;
    set max_parallel_workers_per_gather = 0;
    set jit = off;
    set statement_timeout = '60s';
    set lock_timeout = '2s';
    set application_name = 'outbox-relay reader'";

/// A little more than the database itself allows a statement: a server can stall altogether.
const PAGE_TIMEOUT: Duration = Duration::from_secs(70);

/// Reads an outbox, a page at a time.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    /// The outbox, as SQL.
    outbox: String,
    /// Where the stragglers of a window are, once that was asked.
    known: Mutex<Option<(WindowBounds, Stragglers)>>,
}

/// A row whose transaction is still to come in this cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FutureRow {
    /// Its number.
    pub seq: String,
    /// Its transaction id.
    pub xid: String,
    /// The next id of this cluster.
    pub next_xid: String,
}

/// What a window reaches from, and what to.
type WindowBounds = (Snapshot, Arc<Snapshot>);

/// Why a page could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database can't be reached, or rejects the statement.
    #[error("can't read the outbox")]
    Database(#[from] tokio_postgres::Error),
    /// The database says nothing.
    #[error("the database doesn't answer within {0:?}")]
    Silent(Duration),
    /// A row has a value that is none of the type that is asked for.
    #[error("the row with seq {seq} can't be read")]
    Unreadable {
        /// Its number.
        seq: i64,
        /// What the database says of it.
        source: tokio_postgres::Error,
    },
    /// A row can't be a record, nor be set aside.
    #[error("the row with seq {seq} can't be published: {what}")]
    Row {
        /// Its number.
        seq: i64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The answer is not what a COPY of the outbox looks like.
    #[error("the outbox isn't as it should be: {0}")]
    Layout(&'static str),
}

impl ReadError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Database(source) | Self::Unreadable { source, .. } => hints::for_postgres(source),
            Self::Silent(_) => hints::SILENT_POSTGRES,
            Self::Row { .. } => hints::ROW,
            Self::Layout(_) => hints::TABLES,
        }
    }
}

async fn within<T>(
    limit: Duration,
    reading: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, ReadError> {
    let read = tokio::time::timeout(limit, reading).await;
    read.unwrap_or(Err(ReadError::Silent(limit)))
}

impl From<MalformedSnapshot> for ReadError {
    fn from(_: MalformedSnapshot) -> Self {
        Self::Layout("Postgres sent a snapshot that can't be read")
    }
}

impl Reader {
    /// Reads the outbox of this mapping through this connection from now on.
    ///
    /// # Errors
    /// If the database rejects the settings that reading needs.
    pub async fn new(client: Client, mapping: &Mapping) -> Result<Self, ReadError> {
        within(ANSWER_TIMEOUT, async {
            Ok(client.batch_execute(SESSION).await?)
        })
        .await?;
        Ok(Self {
            client,
            outbox: mapping.outbox().to_owned(),
            known: Mutex::new(None),
        })
    }

    /// What is visible now.
    ///
    /// # Errors
    /// If the database can't be asked.
    pub async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let asking = self.client.simple_query("select pg_current_snapshot()");
        let messages = within(ANSWER_TIMEOUT, async { Ok(asking.await?) }).await?;
        let text = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(text.ok_or(ReadError::Layout("no snapshot"))?.parse()?)
    }

    /// The next rows of the open window, at most `max_rows`, in the order of [`Position`]. The whole page is
    /// in memory when this returns: a slow broker must not keep a statement open, for its snapshot
    /// would hold back vacuum in the whole database.
    ///
    /// # Errors
    /// If the database can't be asked or answers nonsense.
    pub async fn page(&self, cursor: &Cursor, max_rows: usize) -> Result<Page, ReadError> {
        let stragglers = self.stragglers(cursor).await?;
        let query = PageQuery {
            columns: COLUMNS,
            outbox: &self.outbox,
            cursor,
            stragglers: &stragglers,
            last_seq: i64::MAX,
            // One more shows where the last seq of the page ends.
            max_rows: max_rows.saturating_add(1),
            order: Order::Seq,
        };
        match self.read(&query).await {
            Err(ReadError::Database(err)) if is_of_data(&err) => {
                self.readable_part(&query, err).await
            }
            page => page,
        }
    }

    async fn read(&self, query: &PageQuery<'_>) -> Result<Page, ReadError> {
        let page = self.copy(&query.sql(), query.max_rows).await?;
        if let Some(page) = page.with_whole_seqs()? {
            return Ok(page);
        }
        // More rows share one seq than a page may hold; they have the whole page then, or still more rows share the
        // event id as well.
        let mut max_rows = query.max_rows;
        loop {
            let query = PageQuery {
                order: Order::Position,
                max_rows,
                ..*query
            };
            let page = self.copy(&query.sql(), max_rows).await?;
            let is_cut = page.bytes() > MAX_PAGE_BYTES;
            match page.with_whole_positions()? {
                Ok(page) => return Ok(page),
                Err(seq) if is_cut => {
                    let what = "more than 16 MiB of rows share its seq and its event_id";
                    return Err(ReadError::Row { seq, what });
                }
                Err(_) => max_rows = max_rows.saturating_mul(2),
            }
        }
    }

    /// A page of the rows before one that can't be read, some of them at least, where all of them together
    /// have failed for a value of one. The database may have looked at rows behind these as well.
    async fn readable_part(
        &self,
        query: &PageQuery<'_>,
        err: tokio_postgres::Error,
    ) -> Result<Page, ReadError> {
        // The rest of a seq that was read in part.
        if let Some(seq) = query.cursor.seq_read_in_part() {
            match self.read_up_to(query, seq).await? {
                Ok(rest) if rest.rows().len() == 0 => {}
                Ok(rest) => return Ok(rest.with_more_behind()),
                Err(source) => return Err(ReadError::Unreadable { seq, source }),
            }
        }
        // Nothing but seqs: any other value may be the one that can't be read.
        let listing = PageQuery {
            columns: "seq",
            cursor: &query.cursor.behind_whole_seqs(),
            ..*query
        };
        let mut seqs = self.copy(&listing.sql(), query.max_rows).await?.seqs()?;
        seqs.dedup();
        let mut count = seqs.len();
        while let Some(&seq) = seqs[..count].last() {
            match self.read_up_to(query, seq).await? {
                Ok(page) => return Ok(page.with_more_behind()),
                Err(source) if count == 1 => return Err(ReadError::Unreadable { seq, source }),
                Err(_) => count /= 2,
            }
        }
        Err(err.into())
    }

    /// The page up to this seq, or why a row of it can't be read.
    async fn read_up_to(
        &self,
        query: &PageQuery<'_>,
        last_seq: i64,
    ) -> Result<Result<Page, tokio_postgres::Error>, ReadError> {
        match self.read(&PageQuery { last_seq, ..*query }).await {
            Ok(page) => Ok(Ok(page)),
            Err(ReadError::Database(err)) if is_of_data(&err) => Ok(Err(err)),
            Err(err) => Err(err),
        }
    }

    /// The row whose transaction id is farthest ahead of this cluster, if there is one: it comes from another cluster, by
    /// replication or from a dump. Nobody would see it before that many transactions have passed here, and then its
    /// event would come behind newer ones.
    ///
    /// # Errors
    /// If the database can't be asked.
    pub async fn row_from_the_future(&self) -> Result<Option<FutureRow>, ReadError> {
        let sql = format!(
            "select seq, xid, pg_snapshot_xmax(pg_current_snapshot()) from {}
             where xid >= pg_snapshot_xmax(pg_current_snapshot()) order by xid desc limit 1",
            self.outbox
        );
        let asking = self.client.simple_query(&sql);
        let messages = within(PAGE_TIMEOUT, async { Ok(asking.await?) }).await?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(row.map(|row| {
            let text = |index| row.get(index).unwrap_or("null").to_owned();
            FutureRow {
                seq: text(0),
                xid: text(1),
                next_xid: text(2),
            }
        }))
    }

    /// Where the window's stragglers are. It is asked once a window, and not before the second page
    /// of them: mostly there is none, and the statement would be in vain.
    async fn stragglers(&self, cursor: &Cursor) -> Result<Stragglers, ReadError> {
        let Some(window) = cursor.window() else {
            return Ok(Stragglers::Anywhere);
        };
        if window.done == Position::BEGINNING || !cursor.expects_stragglers() {
            return Ok(Stragglers::Anywhere);
        }
        if let Some((bounds, stragglers)) = &*self.known.lock()
            && (&bounds.0, &bounds.1) == (cursor.seen(), &window.upto)
        {
            return Ok(stragglers.clone());
        }
        let sql = late_transactions_sql(&self.outbox, cursor, window);
        let asking = self.client.simple_query(&sql);
        let messages = within(PAGE_TIMEOUT, async { Ok(asking.await?) }).await?;
        let mut late = Vec::new();
        for message in &messages {
            if let SimpleQueryMessage::Row(row) = message {
                let xid = row.get(0).and_then(|xid| xid.parse().ok());
                late.push(xid.ok_or(ReadError::Layout("column xid is no xid8"))?);
            }
        }
        let stragglers = match late.len() {
            0..=MAX_BRANCHES => Stragglers::Of(late.into()),
            _ => Stragglers::Anywhere,
        };
        let bounds = (cursor.seen().clone(), Arc::clone(&window.upto));
        *self.known.lock() = Some((bounds, stragglers.clone()));
        Ok(stragglers)
    }

    /// What this query brings: at most `max_rows`, with the columns of [`COLUMNS`].
    ///
    /// # Errors
    /// As of [`page`](Self::page).
    pub(crate) async fn page_of(&self, query: &str, max_rows: usize) -> Result<Page, ReadError> {
        self.copy(query, max_rows).await
    }

    async fn copy(&self, query: &str, max_rows: usize) -> Result<Page, ReadError> {
        within(PAGE_TIMEOUT, self.copy_all(query, max_rows)).await
    }

    async fn copy_all(&self, query: &str, max_rows: usize) -> Result<Page, ReadError> {
        let sql = format!("copy ({query}) to stdout (format binary)");
        let mut messages = pin!(self.client.copy_out(&sql).await?);
        let mut page = Page::default();
        while let Some(message) = messages.try_next().await? {
            page.push(message)?;
            if page.bytes() > MAX_PAGE_BYTES {
                return Ok(page);
            }
        }
        page.end(max_rows);
        Ok(page)
    }
}

/// Whether a value of some row may be the reason: it can't be what it is asked to be, is too large for an answer, or
/// damaged.
fn is_of_data(err: &tokio_postgres::Error) -> bool {
    // Data exceptions, out of memory, limits of the program, internal errors: "missing chunk number 0 for toast value".
    const CODES: [&str; 4] = ["22", "53200", "54", "XX"];
    let code = err.code().map_or("", SqlState::code);
    CODES.iter().any(|of_data| code.starts_with(of_data))
}

/// A COPY takes no parameters. (Backslashes mean nothing in a standard string.)
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
