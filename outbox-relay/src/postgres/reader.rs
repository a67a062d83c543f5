//! Reads pending rows page by page. A poll reads the first page of a window with the SQL in `next_window`. `pending` has the SQL
//! for any page of an open window, also for a first page that the poll could not read. `page` decodes the result.

mod next_window;
mod page;
mod pending;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use postgres_session::apply_settings;
use tokio_postgres::{Client, RowStream, error::SqlState, types::ToSql};

pub(crate) use self::page::COLUMNS;
pub use self::page::{Page, Row};
use self::{
    next_window::{Header, NextWindowQuery, RecentTransactions, next_window_sql},
    pending::{LateRows, MAX_TRANSACTIONS, Order, PageQuery, late_transactions_sql},
};
use crate::{
    config::Mapping,
    hints,
    postgres::{
        session::{ANSWER_TIMEOUT, cause_of},
        snapshot::{Snapshot, Xid},
        statements::{Params, PreparingClient},
        verification::{LeaderIdentity, Verification, verification_sql},
        window::{Cursor, Position},
    },
};

/// The size at which a page is cut; the next page reads the rest again. A page uses at most this much memory plus one row.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Forces scans of the two indexes, in their order. Statistics are wrong right after a partition was filled or truncated.
///
/// Forces generic plans: planning each page would be most of the cost of a small one. A plan is made again only after a partition
/// was truncated or analyzed. Without constraint exclusion that takes a third of the time; no check constraint excludes a
/// partition.
///
/// Disables parallel workers, so that the branches of a `union all` come in their order. `next_window` relies on it.
///
/// The `lock_timeout` reports a session that locks the outbox, instead of waiting silently.
const SETTINGS: [(&str, &str); 10] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("constraint_exclusion", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
    ("statement_timeout", "60s"),
    ("lock_timeout", "2s"),
    ("application_name", "outbox-relay reader"),
];

/// More than the `statement_timeout`, for a server that stalls.
const PAGE_TIMEOUT: Duration = Duration::from_secs(70);

/// Reads an outbox page by page.
#[derive(Debug)]
pub struct Reader {
    client: PreparingClient,
    /// The table expression of the outbox.
    outbox: String,
    /// The late rows of the current window, after they were looked up.
    late_rows: Mutex<Option<(WindowBounds, LateRows)>>,
    recent: Mutex<RecentTransactions>,
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

impl Reader {
    /// Prepares the connection for reading the outbox of this mapping.
    ///
    /// # Errors
    /// If the database rejects the settings of the session.
    pub async fn new(client: Client, mapping: &Mapping) -> Result<Self, ReadError> {
        with_timeout(ANSWER_TIMEOUT, async {
            Ok(apply_settings(&client, &SETTINGS).await?)
        })
        .await?;
        Ok(Self {
            client: PreparingClient::new(client),
            outbox: mapping.outbox().to_owned(),
            late_rows: Mutex::new(None),
            recent: Mutex::new(RecentTransactions::none(Instant::now())),
        })
    }

    /// Returns the current snapshot.
    ///
    /// # Errors
    /// If the query fails.
    pub async fn take_snapshot(&self) -> Result<Snapshot, ReadError> {
        let taking = async {
            let sql = "select pg_current_snapshot()";
            Ok(self.client.query_one(sql, &[]).await?.try_get(0)?)
        };
        with_timeout(ANSWER_TIMEOUT, taking).await
    }

    /// Reads the first rows of the next window, at most `max_rows`, in the order of [`Position`]. Also returns the
    /// snapshot at the end of the window, with which the caller opens it. No window of the cursor may be open.
    ///
    /// One statement takes the snapshot and reads the rows. A separate statement for the snapshot would cost another round trip.
    ///
    /// # Errors
    /// As [`read_page`](Self::read_page).
    pub async fn read_next_window(
        &self,
        cursor: &Cursor,
        max_rows: usize,
    ) -> Result<(Snapshot, Page), ReadError> {
        // One more row shows whether the last seq of the page is complete.
        let limit = max_rows.saturating_add(1);
        let (header, page) = match self.fetch_next_window(cursor, limit).await {
            Ok(fetched) => fetched,
            Err(ReadError::Database(err)) if is_data_error(&err) => {
                return self
                    .read_whole_window(cursor, self.take_snapshot().await?, max_rows)
                    .await;
            }
            Err(err) => return Err(err),
        };
        let end_snapshot = header.end_snapshot;
        let page = match page {
            Some(page) if !header.older_has_completed => page.keep_complete_seqs()?,
            _ => None,
        };
        match page {
            Some(page) => Ok(self.record_window(end_snapshot, page)),
            None => self.read_whole_window(cursor, end_snapshot, max_rows).await,
        }
    }

    fn record_window(&self, end_snapshot: Snapshot, page: Page) -> (Snapshot, Page) {
        let (mut recent, now) = (self.recent.lock(), Instant::now());
        match page.is_last() {
            true => recent.add(page.len(), &end_snapshot, now),
            false => recent.restart(&end_snapshot, now),
        }
        drop(recent);
        (end_snapshot, page)
    }

    /// Reads the first rows of the window to this snapshot with the statement for an open window.
    async fn read_whole_window(
        &self,
        cursor: &Cursor,
        end_snapshot: Snapshot,
        max_rows: usize,
    ) -> Result<(Snapshot, Page), ReadError> {
        let mut opened = cursor.clone();
        opened.open(end_snapshot.clone());
        let page = self.read_page(&opened, max_rows).await?;
        Ok(self.record_window(end_snapshot, page))
    }

    /// Fetches at most `limit` rows of the next window. Returns no page if it may lack late rows.
    async fn fetch_next_window(
        &self,
        cursor: &Cursor,
        limit: usize,
    ) -> Result<(Header, Option<Page>), ReadError> {
        let query = NextWindowQuery::new(cursor, &self.recent.lock(), limit);
        let sql = next_window_sql(&self.outbox);
        let fetching = async {
            let mut rows = pin!(self.client.query_stream(&sql, &query.params()).await?);
            let header = rows.try_next().await?;
            let header = Header::decode(&header.ok_or(ReadError::Layout("no snapshot"))?)?;
            Ok((header, collect_page(rows).await?))
        };
        let (header, (mut page, is_whole)) = with_timeout(PAGE_TIMEOUT, fetching).await?;
        let late = page.sort_up_to(cursor.max_seq())?;
        let rows = page.len();
        // The late rows may continue, beyond the limit or the size of a page.
        if late >= limit || (!is_whole && late == rows) {
            return Ok((header, None));
        }
        match is_whole && rows < limit {
            true => page.finish(),
            // The statement returns as many new rows as if there were no late ones.
            false => page.truncate(limit),
        }
        Ok((header, Some(page)))
    }

    /// Reads the next rows of the open window, at most `max_rows`, in the order of [`Position`]. Returns the page as a whole: a
    /// statement that stays open while a broker is slow would hold back vacuum in the whole database.
    ///
    /// # Errors
    /// If the query fails, or its result is malformed.
    pub async fn read_page(&self, cursor: &Cursor, max_rows: usize) -> Result<Page, ReadError> {
        let late_rows = self.find_late_rows(cursor).await?;
        let query = PageQuery {
            late_rows: &late_rows,
            ..self.page_query(cursor, max_rows)
        };
        match self.read(&query).await {
            Err(ReadError::Database(err)) if is_data_error(&err) => {
                self.read_before_unreadable_row(&query, err).await
            }
            page => page,
        }
    }

    fn page_query<'a>(&'a self, cursor: &'a Cursor, max_rows: usize) -> PageQuery<'a> {
        PageQuery {
            columns: COLUMNS,
            outbox: &self.outbox,
            cursor,
            late_rows: &LateRows::OfAnyTransaction,
            last_seq: i64::MAX,
            // One more row shows whether the last seq of the page is complete.
            max_rows: max_rows.saturating_add(1),
            order: Order::Seq,
        }
    }

    async fn read(&self, query: &PageQuery<'_>) -> Result<Page, ReadError> {
        let page = self.fetch(query).await?;
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
            let page = self.fetch(&query).await?;
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
        let listed = self.fetch(&listing).await?;
        let mut seqs = listed.decode_seqs()?;
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

    /// Verifies the database of this session.
    ///
    /// # Errors
    /// If the query fails.
    pub(crate) async fn verify(&self, leader: &LeaderIdentity) -> Result<Verification, ReadError> {
        let sql = verification_sql(&self.outbox);
        let verifying = async {
            let row = self.client.query_one(&sql, &leader.params()).await?;
            Ok(Verification::decode(&row)?)
        };
        with_timeout(PAGE_TIMEOUT, verifying).await
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
        let position = window.position;
        let sql = late_transactions_sql(&self.outbox, position);
        let start_snapshot = cursor.start_snapshot();
        let listed: Vec<Xid> = (start_snapshot.in_progress().iter())
            .map(|xid| Xid(*xid))
            .collect();
        let (from_xmax, max_seq) = (Xid(start_snapshot.xmax()), cursor.max_seq());
        let limit = MAX_TRANSACTIONS as i64 + 1;
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![
            &listed,
            &*window.end_snapshot,
            &from_xmax,
            &position.seq,
            &max_seq,
            &limit,
        ];
        if let Some(event_id) = &position.event_id {
            params.push(event_id);
        }
        let finding = async { Ok(self.client.query(&sql, &params).await?) };
        let rows = with_timeout(PAGE_TIMEOUT, finding).await?;
        let transactions: Vec<Xid> = (rows.iter())
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        let late_rows = match transactions.len() {
            0..=MAX_TRANSACTIONS => LateRows::OfTransactions(transactions.into()),
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
    pub(crate) async fn query_page(
        &self,
        sql: &str,
        params: Params<'_>,
        max_rows: usize,
    ) -> Result<Page, ReadError> {
        let querying = async {
            let rows = pin!(self.client.query_stream(sql, params).await?);
            let (mut page, is_whole) = collect_page(rows).await?;
            if is_whole && page.len() < max_rows {
                page.finish();
            }
            Ok(page)
        };
        with_timeout(PAGE_TIMEOUT, querying).await
    }

    async fn fetch(&self, query: &PageQuery<'_>) -> Result<Page, ReadError> {
        let params = query.params();
        self.query_page(&query.sql(), &params.to_sql(), query.max_rows)
            .await
    }
}

/// Collects rows until they exceed the size of a page. Returns whether these are all of them.
async fn collect_page(mut rows: Pin<&mut RowStream>) -> Result<(Page, bool), ReadError> {
    let mut page = Page::default();
    while let Some(row) = rows.try_next().await? {
        page.push(row);
        if page.bytes() > MAX_PAGE_BYTES {
            return Ok((page, false));
        }
    }
    Ok((page, true))
}

/// Returns true if a value may be the cause: it can't be converted, is too large, or is damaged.
fn is_data_error(err: &tokio_postgres::Error) -> bool {
    // Data exceptions, out of memory, program limits, and internal errors such as "missing chunk number 0 for toast value".
    const CODES: [&str; 4] = ["22", "53200", "54", "XX"];
    let code = err.code().map_or("", SqlState::code);
    CODES.iter().any(|class| code.starts_with(class))
}
