//! Measures the backlog of a source: its pending rows, and other facts that only the database knows.

use std::time::Duration;

use crate::{
    config::{Mapping, SourceConfig},
    postgres::{
        leader,
        session::{self, DatabaseError, Session},
    },
};

/// The limit up to which rows are counted; a larger backlog is estimated. It bounds the cost of the statement to a few
/// milliseconds, however long the relay was down.
const MAX_COUNTED: i64 = 1_000;

/// Forces index scans, as in the reader's session. The timeout is far below the interval between measurements.
const SETTINGS: [(&str, &str); 5] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("statement_timeout", "2s"),
];

/// The result of one measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurement {
    pub(crate) pending: PendingRows,
    pub(crate) rejections: RejectionCounts,
    /// The size of the outbox with its indexes.
    pub(crate) outbox_bytes: i64,
    /// The age of the checkpoint by the database's clock.
    pub(crate) checkpoint_age: Option<Duration>,
    /// The checkpoint as text, to detect progress.
    pub(crate) checkpoint: String,
    /// The session that holds the source's lock while this relay is a standby.
    pub(crate) leader: Option<String>,
    pub(crate) unpublishable: Option<UnpublishableRows>,
}

/// The numbers of parked keys and dead letters of a source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RejectionCounts {
    pub(crate) parked_keys: i64,
    pub(crate) dead_letters: i64,
}

/// Rows without a seq or a transaction id. The reader never finds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnpublishableRows {
    pub(crate) table: String,
    pub(crate) rows: i64,
    /// True if there may be more.
    pub(crate) is_minimum: bool,
    /// The event id of one of them, as text.
    pub(crate) example: String,
}

/// The pending rows: committed and not published.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PendingRows {
    pub(crate) rows: i64,
    /// True if there are too many to count. The number is then computed from seq, which has gaps.
    pub(crate) is_estimate: bool,
    /// The age of the oldest row in seconds. `None` without a creation time.
    pub(crate) oldest_age_s: Option<f64>,
    /// The highest seq in the outbox.
    pub(crate) newest_seq: i64,
    /// The highest published seq.
    pub(crate) published_seq: i64,
}

/// Measures the backlog of a source repeatedly in one session.
#[derive(Debug)]
pub(crate) struct BacklogMonitor {
    session: Session,
}

impl BacklogMonitor {
    pub(crate) async fn connect(config: &SourceConfig) -> Result<Self, DatabaseError> {
        let session = session::connect(&config.database_url, "outbox-relay backlog").await?;
        session.apply_settings(&SETTINGS).await?;
        Ok(Self { session })
    }

    /// Measures the backlog now. `rejection_counts` are two columns of a select list: see [`RejectionCounts`].
    pub(crate) async fn measure(
        &self,
        config: &SourceConfig,
        rejection_counts: &str,
    ) -> Result<Measurement, DatabaseError> {
        let measuring = measure_pending_rows(&self.session, config, rejection_counts);
        let mut measurement = measuring.await?;
        if !config.mapping.is_own() {
            let unpublishable = count_unpublishable(&self.session, &config.mapping);
            measurement.unpublishable = unpublishable.await?;
        }
        Ok(measurement)
    }

    /// Describes the session that holds the source's lock.
    pub(crate) async fn find_leader(
        &self,
        config: &SourceConfig,
    ) -> Result<Option<String>, DatabaseError> {
        leader::find_lock_holder(&self.session, &config.name).await
    }
}

/// Selects the columns among `:xid` and `:seq` of `:table` that accept null in new rows. Recognizes `not null` and check
/// constraints that only join `is not null` conditions with `and`. Constraints may be `not valid`, which applies to old rows.
/// (Since Postgres 18 a constraint can be `not enforced`.)
pub(crate) const NULLABLE_COLUMNS: &str = r#"
    select attname from pg_attribute
    where attrelid = :table::regclass and attname in (:xid, :seq) and not attnotnull and not exists (
        select from pg_constraint, pg_get_expr(conbin, conrelid) as condition
        where conrelid = attrelid and contype = 'c' and not connoinherit
            and coalesce(to_jsonb(pg_constraint) ->> 'conenforced', 'true') = 'true'
            and condition ~ '^(\(+("([^"]|"")+"|[a-z0-9_]+) IS NOT NULL\)+( AND |$))+$'
            and quote_ident(attname) in (
                select name[1] from regexp_matches(condition, '("(?:[^"]|"")+"|[a-z0-9_]+) IS NOT NULL', 'g') as name)
    )"#;

/// Counts rows without a seq or a transaction id. Ignores them if the table rejects new ones: then they are older than these
/// columns, and the previous publisher was responsible for them.
async fn count_unpublishable(
    session: &Session,
    mapping: &Mapping,
) -> Result<Option<UnpublishableRows>, DatabaseError> {
    let [xid, seq, event_id] = mapping.quoted_columns();
    let (table, nullable) = (mapping.table(), mapping.fill_in(NULLABLE_COLUMNS));
    // No position precedes the lowest bigint, so a row with this seq is never read either.
    let sql = format!(
        "with nullable as (select exists ({nullable}) as is_so), unpublishable (event_id) as (
             (select {event_id}::text from {table}
              where {seq} is null and (select is_so from nullable) limit {MAX_COUNTED})
             union all
             (select {event_id}::text from {table}
              where {xid} is null and {seq} is not null and (select is_so from nullable) limit {MAX_COUNTED})
             union all
             (select {event_id}::text from {table} where {seq} = '{}'::bigint limit 1)
         )
         select count(*), coalesce(min(event_id), 'null') from unpublishable",
        i64::MIN
    );
    let row = session.query_one(&sql, &[]).await?;
    let (rows, example) = (row.get(0), row.get(1));
    Ok((rows > 0).then(|| UnpublishableRows {
        table: table.to_owned(),
        rows,
        is_minimum: rows >= MAX_COUNTED,
        example,
    }))
}

/// Counts the rows after the checkpoint: rows above its highest seq, and rows of transactions that were open when it was
/// stored. While a window is open, its unread late rows are not counted.
async fn measure_pending_rows(
    client: &Session,
    config: &SourceConfig,
    rejection_counts: &str,
) -> Result<Measurement, DatabaseError> {
    let (outbox, table) = (
        config.mapping.outbox(),
        quote_literal(config.mapping.table()),
    );
    let sql = format!(
        "with stored as (
             select coalesce(window_snapshot, snapshot) as seen,
                 greatest(max_seq, window_seq - (window_event_id is not null)::int) as done,
                 date_part('epoch', clock_timestamp() - heartbeat_at) as age_s,
                 concat_ws(' ', snapshot, max_seq, window_snapshot, window_seq, window_event_id) as place
             from relay_checkpoints where source = $1
         ), checkpoint as (
             select * from stored
             union all
             select '1:1:', $2, null, '' where not exists (select from stored)
         ), pending as (
             (select created_at from {outbox}
              where seq > (select done from checkpoint) order by seq limit {MAX_COUNTED})
             union all
             (select created_at from (
                  select created_at, seq from {outbox}
                  where xid >= (select pg_snapshot_xmax(seen) from checkpoint)
                  order by xid limit {MAX_COUNTED}
              ) as later where seq <= (select done from checkpoint))
             union all
             (select created_at from {outbox}
              where xid = any (array(select pg_snapshot_xip(seen) from checkpoint))
                  and seq <= (select done from checkpoint) limit {MAX_COUNTED})
         ), counted as (
             select count(*) as rows,
                 min(created_at) filter (where isfinite(created_at)) as oldest
             from pending
         )
         select counted.rows,
             date_part('epoch', clock_timestamp() - counted.oldest),
             (select max(seq) from {outbox}), (select min(seq) from {outbox}),
             coalesce(
                 (select sum(pg_total_relation_size(relid))::bigint from pg_partition_tree({table})),
                 pg_total_relation_size({table})),
             checkpoint.age_s, checkpoint.place, checkpoint.done, {rejection_counts}
         from counted, checkpoint"
    );
    let row = client.query_one(&sql, &[&config.name, &i64::MIN]).await?;
    let (counted, oldest_age_s): (i64, Option<f64>) = (row.try_get(0)?, row.try_get(1)?);
    let (newest_seq, oldest_seq): (Option<i64>, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
    let published_seq: i64 = row.try_get(7)?;
    // Before the first publication everything before the oldest row counts as published.
    let published_seq = oldest_seq.map_or(published_seq, |seq| {
        published_seq.max(seq.saturating_sub(1))
    });
    let newest_seq = newest_seq.unwrap_or(published_seq);
    let is_estimate = counted >= MAX_COUNTED;
    let rows = match is_estimate {
        true => counted.max(newest_seq.saturating_sub(published_seq)),
        false => counted,
    };
    Ok(Measurement {
        pending: PendingRows {
            rows,
            is_estimate,
            oldest_age_s: oldest_age_s.map(|age_s| age_s.max(0.0)),
            newest_seq,
            published_seq,
        },
        rejections: RejectionCounts {
            parked_keys: row.try_get(8)?,
            dead_letters: row.try_get(9)?,
        },
        outbox_bytes: row.get::<_, Option<i64>>(4).unwrap_or(0),
        checkpoint_age: row
            .get::<_, Option<f64>>(5)
            .and_then(|age_s| Duration::try_from_secs_f64(age_s).ok()),
        checkpoint: row.get(6),
        leader: None,
        unpublishable: None,
    })
}

/// Quotes a string literal. (Backslashes are ordinary characters in a standard string.)
fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
