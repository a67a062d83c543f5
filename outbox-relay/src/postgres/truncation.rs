//! Truncates published partitions. No row is deleted, so vacuum has no work, even while an old transaction is open.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::{
    config::SourceConfig,
    postgres::{
        leader::Leadership,
        session::{self, DatabaseError, Session},
    },
};

/// The `lock_timeout` of a truncation. Other sessions that access the partition wait as long. Only unusually slow
/// transactions still write to it.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// The `idle_in_transaction_session_timeout` of a session that holds the lock.
const IDLE_LIMIT: Duration = Duration::from_secs(1);

/// The age of its last heartbeat from which another source is reported for blocking a truncation.
const IDLE_SOURCE_AFTER: Duration = Duration::from_mins(10);

/// Selects each partition, its buckets, and the default of column `bucket`, which is the bucket of new rows.
const PARTITIONS: &str = "
    select child.oid::regclass::text,
           substring(pg_get_expr(child.relpartbound, child.oid) from '\\((.*)\\)'),
           (select pg_get_expr(def.adbin, def.adrelid)
            from pg_attrdef def join pg_attribute att
                on att.attrelid = def.adrelid and att.attnum = def.adnum
            where def.adrelid = inherits.inhparent and att.attname = 'bucket')
    from pg_inherits inherits join pg_class child on child.oid = inherits.inhrelid
    where inherits.inhparent = 'outbox'::regclass
    order by 1";

/// The result of [`truncate_published_partitions`].
#[derive(Default)]
pub(crate) struct TruncationReport {
    pub(crate) truncated: Vec<String>,
    /// A partition that an idle source blocks.
    pub(crate) blocked: Option<BlockedPartition>,
}

/// A partition that can't be truncated because an idle source has not published all of its rows.
pub(crate) struct BlockedPartition {
    pub(crate) partition: String,
    pub(crate) source: String,
    pub(crate) idle_for: Duration,
}

/// Truncates each partition whose rows are published, and to which no new rows go.
///
/// Skips a partition that can't be locked immediately. Continues with the other partitions after an error, and returns the
/// first error.
pub(crate) async fn truncate_published_partitions(
    config: &SourceConfig,
    leadership: &Leadership,
    report: &mut TruncationReport,
) -> Result<(), DatabaseError> {
    // Transactions need a separate session.
    let session = session::connect(&config.database_url, "outbox-relay truncation").await?;
    // A copy of the database would have the same checkpoint, and rows that were never published.
    leadership.verify_same_database(&session).await?;
    // A relay that is suspended while it holds the lock must lose it.
    let sql = format!(
        "set idle_in_transaction_session_timeout = {}",
        IDLE_LIMIT.as_millis()
    );
    session.batch_execute(&sql).await?;
    let mut result = Ok(());
    for row in session.query(PARTITIONS, &[]).await? {
        let (partition, buckets): (String, Option<String>) = (row.get(0), row.get(1));
        let (Some(buckets), Some(current)) = (buckets, row.get::<_, Option<String>>(2)) else {
            continue;
        };
        if session.is_closed() {
            break;
        }
        // The catalog quotes these names and expressions.
        let is_in_use =
            format!("select {current} in ({buckets}) or not exists (select from {partition})");
        if session.query_one(&is_in_use, &[]).await?.get(0) {
            continue;
        }
        match truncate(&session, &partition, config.retention).await {
            Ok(Outcome::Truncated) => report.truncated.push(partition),
            Ok(Outcome::Skipped) => {}
            Ok(Outcome::Blocked { source, idle_for }) => {
                if source != config.name && idle_for > IDLE_SOURCE_AFTER {
                    report.blocked = Some(BlockedPartition {
                        partition,
                        source,
                        idle_for,
                    });
                }
            }
            Err(err) => result = result.and(Err(err)),
        }
    }
    result
}

/// The result for one partition.
enum Outcome {
    Truncated,
    /// The partition is too young, or locked.
    Skipped,
    /// A source has not published all of its rows.
    Blocked {
        source: String,
        idle_for: Duration,
    },
}

async fn truncate(
    session: &Session,
    partition: &str,
    retention: Duration,
) -> Result<Outcome, DatabaseError> {
    let result = try_truncate(session, partition, retention).await;
    let end = if matches!(result, Ok(Outcome::Truncated)) {
        "commit"
    } else {
        "rollback"
    };
    let ended = session.batch_execute(end).await;
    match result {
        Err(err) if err.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(Outcome::Skipped),
        result => result.and_then(|outcome| ended.map(|()| outcome)),
    }
}

/// Truncates a partition in a transaction that the caller must end.
async fn try_truncate(
    session: &Session,
    partition: &str,
    retention: Duration,
) -> Result<Outcome, DatabaseError> {
    let lock = format!(
        "begin;
         set local enable_seqscan = off;
         set local enable_bitmapscan = off;
         set local jit = off;
         set local lock_timeout = {};
         lock table only {partition} in access exclusive mode",
        LOCK_TIMEOUT.as_millis()
    );
    session.batch_execute(&lock).await?;
    // Must follow the lock: a slow transaction may have written here until now. A row is needed while a checkpoint of this
    // table does not include its transaction or its seq, as in the reader's `pending`. These are index scans, because the
    // settings above overrule the statistics, which are wrong for a partition that was just filled.
    let unpublished = format!(
        "select source, date_part('epoch', clock_timestamp() - heartbeat_at)
         from relay_checkpoints as checkpoint
         where (outbox is null or outbox = 'outbox'::regclass) and (
             exists (
                 select from {partition} where seq > greatest(max_seq, window_seq)
             ) or exists (
                 select from {partition} where xid >= pg_snapshot_xmax(snapshot)
             ) or exists (
                 select from {partition} where xid = any (array(select pg_snapshot_xip(snapshot)))
             )
         )
         order by heartbeat_at limit 1"
    );
    if let Some(row) = session.query_opt(&unpublished, &[]).await? {
        let idle_for = Duration::try_from_secs_f64(row.get(1)).unwrap_or_default();
        return Ok(Outcome::Blocked {
            source: row.get(0),
            idle_for,
        });
    }
    // A creation time in the future says nothing about a row's age.
    let is_young = format!(
        "select (select created_at from {partition} order by seq desc limit 1)
             between clock_timestamp() - make_interval(secs => $1) and clock_timestamp()"
    );
    let row = session
        .query_one(&is_young, &[&retention.as_secs_f64()])
        .await?;
    if row.get::<_, Option<bool>>(0).unwrap_or(true) {
        return Ok(Outcome::Skipped);
    }
    session
        .batch_execute(&format!("truncate only {partition}"))
        .await?;
    Ok(Outcome::Truncated)
}
