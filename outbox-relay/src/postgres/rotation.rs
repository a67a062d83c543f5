//! Empties what was published: whole partitions, by TRUNCATE. No row is ever deleted, so nothing is left
//! for vacuum, whatever transaction may be open.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::{
    config::SourceConfig,
    postgres::{
        leader::Leadership,
        session::{self, DatabaseError, Session},
    },
};

/// How long to wait for the lock. Whoever wants to write to or read from the partition meanwhile
/// waits as long; nobody writes to it unless a transaction is unusually slow.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// How long the database waits for the next statement of a transaction that has the lock.
const IDLE_LIMIT: Duration = Duration::from_secs(1);

/// A source that nobody has led for so long holds up the truncation that others wait for.
const SILENT_SOURCE_AFTER: Duration = Duration::from_mins(10);

/// The partitions, and whether new rows go there now: the default of column `bucket` says where.
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

/// What came of one look at the partitions.
#[derive(Default)]
pub(crate) struct Rotation {
    pub(crate) truncated: Vec<String>,
    /// A partition that another source has not published for long.
    pub(crate) kept_for: Option<KeptFor>,
}

/// A partition that is kept for a source which does nothing.
pub(crate) struct KeptFor {
    pub(crate) partition: String,
    pub(crate) source: String,
    pub(crate) silent_for: Duration,
}

/// Empties each partition that has no row that is still needed, and gets no new ones now.
///
/// A partition that can't be locked at once is left for the next time; what goes wrong with one keeps
/// none of the others from it.
pub(crate) async fn rotate(
    config: &SourceConfig,
    leadership: &Leadership,
    rotation: &mut Rotation,
) -> Result<(), DatabaseError> {
    // A session of its own, because of the transactions.
    let session = session::connect(&config.database_url, "outbox-relay rotation").await?;
    // In another database, a copy of this one, the same checkpoint would say nothing of its rows.
    leadership.vouch_for(&session).await?;
    // A relay that is suspended with the lock in its hands must not keep it.
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
        // Names and expressions are as the database's own catalog spells them.
        let is_in_use =
            format!("select {current} in ({buckets}) or not exists (select from {partition})");
        if session.query_one(&is_in_use, &[]).await?.get(0) {
            continue;
        }
        match truncate(&session, &partition, config.retention).await {
            Ok(Outcome::Truncated) => rotation.truncated.push(partition),
            Ok(Outcome::Kept) => {}
            Ok(Outcome::KeptFor { source, silent_for }) => {
                if source != config.name && silent_for > SILENT_SOURCE_AFTER {
                    rotation.kept_for = Some(KeptFor {
                        partition,
                        source,
                        silent_for,
                    });
                }
            }
            Err(err) => result = result.and(Err(err)),
        }
    }
    result
}

/// What became of a partition.
enum Outcome {
    Truncated,
    /// It is too young, or locked.
    Kept,
    /// This source has not published all of it.
    KeptFor {
        source: String,
        silent_for: Duration,
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
        Err(err) if err.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(Outcome::Kept),
        result => result.and_then(|outcome| ended.map(|()| outcome)),
    }
}

/// In a transaction that is left open.
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
    // Behind the lock, because a slow transaction may have written here until now; with it nobody is
    // in the middle of writing. A row is needed as long as a checkpoint of this table has not seen its transaction, or is not
    // as far as its seq: what the reader's `due` says. These are looks into an index: the settings above see to that,
    // whatever the statistics of a partition that was just filled may say.
    let needed = format!(
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
    if let Some(row) = session.query_opt(&needed, &[]).await? {
        let silent_for = Duration::try_from_secs_f64(row.get(1)).unwrap_or_default();
        return Ok(Outcome::KeptFor {
            source: row.get(0),
            silent_for,
        });
    }
    // A time that is yet to come tells nothing of a row's age.
    let is_young = format!(
        "select (select created_at from {partition} order by seq desc limit 1)
             between clock_timestamp() - make_interval(secs => $1) and clock_timestamp()"
    );
    let row = session
        .query_one(&is_young, &[&retention.as_secs_f64()])
        .await?;
    if row.get::<_, Option<bool>>(0).unwrap_or(true) {
        return Ok(Outcome::Kept);
    }
    session
        .batch_execute(&format!("truncate only {partition}"))
        .await?;
    Ok(Outcome::Truncated)
}
