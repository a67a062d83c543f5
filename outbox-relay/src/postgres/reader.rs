//! Reads pending rows page by page. `pending` has the SQL of a window, `page` decodes the result.

mod page;
mod pending;

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

pub(crate) use self::page::COLUMNS;
pub use self::page::{Page, Row};
use self::pending::{LateRows, MAX_BRANCHES, Order, PageQuery, late_transactions_sql};
use crate::{
    config::Mapping,
    hints,
    postgres::{
        session::{ANSWER_TIMEOUT, cause_of},
        window::{Cursor, MalformedSnapshot, Position, Snapshot},
    },
};

/// The size at which a page is cut; the next page reads the rest again. A page uses at most this much memory plus one row.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Forces scans of the two indexes. Statistics are wrong right after a partition was filled or truncated.
///
/// Disables constraint exclusion: no check constraint ever excludes a partition, and reading those of all partitions took two
/// thirds of the cost of a poll.
///
/// The `lock_timeout` reports a session that locks the outbox, instead of waiting silently.
const SESSION: &str = "set enable_seqscan = off;
    set enable_bitmapscan = off;
    set constraint_exclusion = off;
    set max_parallel_workers_per_gather = 0;
    set jit = off;
    set statement_timeout = '60s';
    set lock_timeout = '2s';
    set application_name = 'outbox-relay reader'";

/// More than the `statement_timeout`, for a server that stalls.
const PAGE_TIMEOUT: Duration = Duration::from_secs(70);

/// Reads an outbox page by page.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    /// The table expression of the outbox.
    outbox: String,
    /// The late rows of the current window, after they were looked up.
    late_rows: Mutex<Option<(WindowBounds, LateRows)>>,
}

/// A row whose transaction id is ahead of this cluster's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FutureRow {
    /// The seq of the row.
    pub seq: String,
    /// The transaction id of the row.
    pub xid: String,
    /// The next transaction id of this cluster.
    pub next_xid: String,
}

/// The snapshots at the start and at the end of a window.
type WindowBounds = (Snapshot, Arc<Snapshot>);

/// An error while reading the outbox.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection failed, or Postgres rejected the statement.
    #[error("failed to read the outbox: {}", cause_of(.0))]
    Database(tokio_postgres::Error),
    /// Postgres did not respond in time.
    #[error("the database did not respond within {0:?}")]
    Timeout(Duration),
    /// A value of a row can't be converted to the required type, is too large, or is damaged.
    #[error("failed to read the row with seq {seq}: {}", cause_of(.cause))]
    Unreadable {
        /// The seq of the row.
        seq: i64,
        /// The error of Postgres.
        cause: tokio_postgres::Error,
    },
    /// A row can't become a record. It can't be parked or dead-lettered either.
    #[error("failed to publish the row with seq {seq}: {reason}")]
    Row {
        /// The seq of the row.
        seq: i64,
        /// The cause.
        reason: &'static str,
    },
    /// The result does not have the format of the outbox.
    #[error("unexpected format of the outbox: {0}")]
    Layout(&'static str),
}

impl From<tokio_postgres::Error> for ReadError {
    fn from(err: tokio_postgres::Error) -> Self {
        Self::Database(err)
    }
}

impl ReadError {
    /// Returns advice for the operator.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Database(cause) | Self::Unreadable { cause, .. } => hints::for_postgres(cause),
            Self::Timeout(_) => hints::SILENT_POSTGRES,
            Self::Row { .. } => hints::ROW,
            Self::Layout(_) => hints::TABLES,
        }
    }
}

async fn with_timeout<T>(
    timeout: Duration,
    reading: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, ReadError> {
    let read = tokio::time::timeout(timeout, reading).await;
    read.unwrap_or(Err(ReadError::Timeout(timeout)))
}

impl From<MalformedSnapshot> for ReadError {
    fn from(_: MalformedSnapshot) -> Self {
        Self::Layout("malformed snapshot")
    }
}

impl Reader {
    /// Prepares the connection for reading the outbox of this mapping.
    ///
    /// # Errors
    /// If the database rejects the settings of the session.
    pub async fn new(client: Client, mapping: &Mapping) -> Result<Self, ReadError> {
        with_timeout(ANSWER_TIMEOUT, async {
            Ok(client.batch_execute(SESSION).await?)
        })
        .await?;
        Ok(Self {
            client,
            outbox: mapping.outbox().to_owned(),
            late_rows: Mutex::new(None),
        })
    }

    /// Returns the current snapshot.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn take_snapshot(&self) -> Result<Snapshot, ReadError> {
        let query = self.client.simple_query("select pg_current_snapshot()");
        let messages = with_timeout(ANSWER_TIMEOUT, async { Ok(query.await?) }).await?;
        let text = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(text.ok_or(ReadError::Layout("no snapshot"))?.parse()?)
    }

    /// Reads the next rows of the open window, at most `max_rows`, in the order of [`Position`]. Returns the page as a whole: a
    /// statement that stays open while a broker is slow would hold back vacuum in the whole database.
    ///
    /// # Errors
    /// If the query fails, or its result is malformed.
    pub async fn read_page(&self, cursor: &Cursor, max_rows: usize) -> Result<Page, ReadError> {
        let late_rows = self.find_late_rows(cursor).await?;
        let query = PageQuery {
            columns: COLUMNS,
            outbox: &self.outbox,
            cursor,
            late_rows: &late_rows,
            last_seq: i64::MAX,
            // One more row shows whether the last seq of the page is complete.
            max_rows: max_rows.saturating_add(1),
            order: Order::Seq,
        };
        match self.read(&query).await {
            Err(ReadError::Database(err)) if is_data_error(&err) => {
                self.read_before_unreadable_row(&query, err).await
            }
            page => page,
        }
    }

    async fn read(&self, query: &PageQuery<'_>) -> Result<Page, ReadError> {
        let page = self.copy(&query.sql(), query.max_rows).await?;
        if let Some(page) = page.keep_complete_seqs()? {
            return Ok(page);
        }
        // More rows share one seq than fit into a page. Read them by position. Grow the page if they share the event id as
        // well.
        let mut max_rows = query.max_rows;
        loop {
            let query = PageQuery {
                order: Order::Position,
                max_rows,
                ..*query
            };
            let page = self.copy(&query.sql(), max_rows).await?;
            let is_cut = page.bytes() > MAX_PAGE_BYTES;
            match page.keep_complete_positions()? {
                Ok(page) => return Ok(page),
                Err(seq) if is_cut => {
                    let reason = "more than 16 MiB of rows share its seq and event_id";
                    return Err(ReadError::Row { seq, reason });
                }
                Err(_) => max_rows = max_rows.saturating_mul(2),
            }
        }
    }

    /// Reads at least some of the rows before an unreadable one, after a page has failed because of a value. The unreadable row
    /// may even be after the page, if the database has read ahead.
    async fn read_before_unreadable_row(
        &self,
        query: &PageQuery<'_>,
        err: tokio_postgres::Error,
    ) -> Result<Page, ReadError> {
        // The rest of a partially read seq.
        if let Some(seq) = query.cursor.partially_read_seq() {
            match self.read_up_to(query, seq).await? {
                Ok(rest) if rest.rows().len() == 0 => {}
                Ok(rest) => return Ok(rest.with_more_to_come()),
                Err(cause) => return Err(ReadError::Unreadable { seq, cause }),
            }
        }
        // Seqs alone, because any other value may be the unreadable one.
        let listing = PageQuery {
            columns: "seq",
            cursor: &query.cursor.after_current_seq(),
            ..*query
        };
        let mut seqs = self.copy(&listing.sql(), query.max_rows).await?.seqs()?;
        seqs.dedup();
        let mut count = seqs.len();
        while let Some(&seq) = seqs[..count].last() {
            match self.read_up_to(query, seq).await? {
                Ok(page) => return Ok(page.with_more_to_come()),
                Err(cause) if count == 1 => return Err(ReadError::Unreadable { seq, cause }),
                Err(_) => count /= 2,
            }
        }
        Err(err.into())
    }

    /// Reads the page up to this seq. The inner error is that of an unreadable row.
    async fn read_up_to(
        &self,
        query: &PageQuery<'_>,
        last_seq: i64,
    ) -> Result<Result<Page, tokio_postgres::Error>, ReadError> {
        match self.read(&PageQuery { last_seq, ..*query }).await {
            Ok(page) => Ok(Ok(page)),
            Err(ReadError::Database(err)) if is_data_error(&err) => Ok(Err(err)),
            Err(err) => Err(err),
        }
    }

    /// Returns the row whose transaction id is farthest ahead of this cluster's, if any. It comes from another cluster, by
    /// replication or from a dump. It would stay invisible until this cluster reaches that id, and then come after newer events.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn find_future_row(&self) -> Result<Option<FutureRow>, ReadError> {
        let sql = format!(
            "select seq, xid, pg_snapshot_xmax(pg_current_snapshot()) from {}
             where xid >= pg_snapshot_xmax(pg_current_snapshot()) order by xid desc limit 1",
            self.outbox
        );
        let query = self.client.simple_query(&sql);
        let messages = with_timeout(PAGE_TIMEOUT, async { Ok(query.await?) }).await?;
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

    /// Finds the transactions of the window's late rows. Queries once per window, and only for the second page: most windows
    /// don't have one.
    async fn find_late_rows(&self, cursor: &Cursor) -> Result<LateRows, ReadError> {
        let Some(window) = cursor.window() else {
            return Ok(LateRows::OfAnyTransaction);
        };
        if window.position == Position::BEGINNING || !cursor.may_have_late_rows() {
            return Ok(LateRows::OfAnyTransaction);
        }
        if let Some((bounds, late_rows)) = &*self.late_rows.lock()
            && (&bounds.0, &bounds.1) == (cursor.start_snapshot(), &window.end_snapshot)
        {
            return Ok(late_rows.clone());
        }
        let sql = late_transactions_sql(&self.outbox, cursor, window);
        let query = self.client.simple_query(&sql);
        let messages = with_timeout(PAGE_TIMEOUT, async { Ok(query.await?) }).await?;
        let mut transactions = Vec::new();
        for message in &messages {
            if let SimpleQueryMessage::Row(row) = message {
                let xid = row.get(0).and_then(|xid| xid.parse().ok());
                transactions.push(xid.ok_or(ReadError::Layout("column xid is not an xid8"))?);
            }
        }
        let late_rows = match transactions.len() {
            0..=MAX_BRANCHES => LateRows::OfTransactions(transactions.into()),
            _ => LateRows::OfAnyTransaction,
        };
        let bounds = (
            cursor.start_snapshot().clone(),
            Arc::clone(&window.end_snapshot),
        );
        *self.late_rows.lock() = Some((bounds, late_rows.clone()));
        Ok(late_rows)
    }

    /// Reads the rows of a query with the columns [`COLUMNS`], at most `max_rows`.
    ///
    /// # Errors
    /// As [`read_page`](Self::read_page).
    pub(crate) async fn query_page(&self, query: &str, max_rows: usize) -> Result<Page, ReadError> {
        self.copy(query, max_rows).await
    }

    async fn copy(&self, query: &str, max_rows: usize) -> Result<Page, ReadError> {
        with_timeout(PAGE_TIMEOUT, self.copy_all(query, max_rows)).await
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
        page.finish(max_rows);
        Ok(page)
    }
}

/// Returns true if a value may be the cause: it can't be converted, is too large, or is damaged.
fn is_data_error(err: &tokio_postgres::Error) -> bool {
    // Data exceptions, out of memory, program limits, and internal errors such as "missing chunk number 0 for toast value".
    const CODES: [&str; 4] = ["22", "53200", "54", "XX"];
    let code = err.code().map_or("", SqlState::code);
    CODES.iter().any(|class| code.starts_with(class))
}

/// Quotes a string literal, because COPY takes no parameters. (Backslashes are ordinary characters in a standard string.)
pub(crate) fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
