//! Empties what was shipped: whole partitions, by TRUNCATE. No row is ever deleted, so nothing is left
//! for vacuum, whatever transaction may be open.

use std::{convert::Infallible, time::Duration};

use tokio_postgres::{Client, error::SqlState};

use crate::{
    config::SourceConfig,
    leader::Leadership,
    session::{self, DatabaseError},
    status::SharedStatus,
};

/// How long to wait for the lock. Whoever wants to write to or read from the partition meanwhile
/// waits as long; nobody writes to it unless a transaction is unusually slow.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// How long the database waits for the next statement of a transaction that has the lock.
const IDLE_LIMIT: Duration = Duration::from_secs(1);

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

/// Empties partitions of a source's outbox, now and then, for as long as it is polled. A table that
/// others made is left to them: who else reads it is not known here.
pub(crate) async fn keep_emptying(
    config: &SourceConfig,
    leadership: &Leadership,
    status: &SharedStatus,
) -> Infallible {
    if !config.mapping.is_own() {
        return std::future::pending().await;
    }
    status.update(|status| _ = status.truncations.get_or_insert(0));
    let mut last_error = None;
    loop {
        tokio::time::sleep(config.rotation_interval).await;
        let mut emptied = Vec::new();
        let result = rotate(config, leadership, &mut emptied).await;
        if !emptied.is_empty() {
            tracing::info!(source = %config.name, partitions = ?emptied, "emptied");
        }
        status.update(|status| *status.truncations.get_or_insert(0) += emptied.len() as u64);
        let error = result.err().map(|err| program::chain(&err));
        // Said once: nothing is lost, the table grows.
        if error != last_error
            && let Some(error) = &error
        {
            tracing::warn!(source = %config.name, error, "can't empty what was shipped");
        }
        last_error = error;
    }
}

/// Empties each partition that has no row that is still needed, and gets no new ones now. The names of
/// those that were are put into `emptied`.
///
/// A partition that can't be locked at once is left for the next time; what goes wrong with one keeps
/// none of the others from it.
async fn rotate(
    config: &SourceConfig,
    leadership: &Leadership,
    emptied: &mut Vec<String>,
) -> Result<(), DatabaseError> {
    // A session of its own, because of the transactions.
    let client = session::connect(&config.database_url, "outbox-relay rotation").await?;
    // In another database, a copy of this one, the same checkpoint would say nothing of its rows.
    leadership.vouch_for(&client).await?;
    // A relay that is suspended with the lock in its hands must not keep it.
    let sql = format!(
        "set idle_in_transaction_session_timeout = {}",
        IDLE_LIMIT.as_millis()
    );
    client.batch_execute(&sql).await?;
    let mut result = Ok(());
    for row in client.query(PARTITIONS, &[]).await? {
        let (partition, buckets): (String, Option<String>) = (row.get(0), row.get(1));
        let (Some(buckets), Some(current)) = (buckets, row.get::<_, Option<String>>(2)) else {
            continue;
        };
        if client.is_closed() {
            break;
        }
        // Names and expressions are as the database's own catalog spells them.
        let is_in_use =
            format!("select {current} in ({buckets}) or not exists (select from {partition})");
        if client.query_one(&is_in_use, &[]).await?.get(0) {
            continue;
        }
        match truncate(&client, &partition, config.retention).await {
            Ok(true) => emptied.push(partition),
            Ok(false) => {}
            Err(err) => result = result.and(Err(err.into())),
        }
    }
    result
}

async fn truncate(
    client: &Client,
    partition: &str,
    retention: Duration,
) -> Result<bool, tokio_postgres::Error> {
    let result = try_truncate(client, partition, retention).await;
    let end = if matches!(result, Ok(true)) {
        "commit"
    } else {
        "rollback"
    };
    let ended = client.batch_execute(end).await;
    match result {
        Err(err) if err.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(false),
        result => result.and_then(|is_emptied| ended.map(|()| is_emptied)),
    }
}

/// In a transaction that is left open.
async fn try_truncate(
    client: &Client,
    partition: &str,
    retention: Duration,
) -> Result<bool, tokio_postgres::Error> {
    let lock = format!(
        "begin;
         set local enable_seqscan = off;
         set local enable_bitmapscan = off;
         set local jit = off;
         set local lock_timeout = {};
         lock table only {partition} in access exclusive mode",
        LOCK_TIMEOUT.as_millis()
    );
    client.batch_execute(&lock).await?;
    // Behind the lock, because a slow transaction may have written here until now; with it nobody is
    // in the middle of writing. A row is needed as long as a checkpoint has not seen its transaction,
    // which two looks into an index tell: the settings above see to that, whatever the statistics
    // of a partition that was just filled may say. A time that is yet to come tells nothing of a row's age.
    let needed = format!(
        "select exists (
             select from relay_checkpoints as checkpoint
             where exists (
                 select from {partition} where xid >= pg_snapshot_xmax(checkpoint.snapshot)
             ) or exists (
                 select from {partition}
                 where xid = any (array(select pg_snapshot_xip(checkpoint.snapshot)))
             )
         ) or (select created_at from {partition} order by seq desc limit 1)
             between clock_timestamp() - make_interval(secs => $1) and clock_timestamp()"
    );
    let row = client
        .query_one(&needed, &[&retention.as_secs_f64()])
        .await?;
    if row.get::<_, Option<bool>>(0).unwrap_or(true) {
        return Ok(false);
    }
    client
        .batch_execute(&format!("truncate only {partition}"))
        .await?;
    Ok(true)
}
