//! What waits in a source's database: asked every few seconds, whoever leads.
//!
//! A standby asks, too: so there are figures also while nobody can lead.

use std::{convert::Infallible, time::Duration};

use crate::{
    config::{Mapping, SourceConfig},
    leader,
    reader::{parked_keys, quoted},
    session::{self, DatabaseError, Session},
    status::{Measured, Pending, Role, SharedStatus, UnpublishableRows},
};

/// How often it is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// Rows that are counted one by one; beyond them the number is an estimate. It bounds what the
/// statement costs, a few milliseconds, however long a relay was away.
const MAX_COUNTED: i64 = 1_000;
/// Dead letters that are counted: they stay until somebody deletes them.
const MAX_LETTERS: i64 = 10_000;

/// As the reader's: rows are found by the two indexes, whatever the planner believes. Whatever the
/// statement waits for, it gives up long before the next one.
const SESSION: &str = "set enable_seqscan = off;
    set enable_bitmapscan = off;
    set jit = off;
    set max_parallel_workers_per_gather = 0;
    set statement_timeout = '2s'";

/// Measures for as long as it is polled.
pub(crate) async fn watch(config: SourceConfig, status: SharedStatus) -> Infallible {
    let mut session = None;
    loop {
        status.tick();
        match measure(&mut session, &config, &status).await {
            Ok(measured) => status.update(|status| status.measured(measured)),
            Err(err) => {
                session = None;
                // Whoever ships, or would like to, tells of the same database.
                let error = program::chain(&err);
                tracing::debug!(source = %config.name, error, "the backlog can't be measured");
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn measure(
    session: &mut Option<Session>,
    config: &SourceConfig,
    status: &SharedStatus,
) -> Result<Measured, DatabaseError> {
    let client = match session.take() {
        Some(client) => client,
        None => {
            let client = session::connect(&config.database_url, "outbox-relay backlog").await?;
            client.batch_execute(SESSION).await?;
            client
        }
    };
    let mut measured = ask(&client, config).await?;
    if status.get().role == Role::Standby {
        measured.leader = leader::holder(&client, &config.name).await?;
    }
    if !config.mapping.is_own() {
        measured.unpublishable = count_unpublishable(&client, &config.mapping).await?;
    }
    *session = Some(client);
    Ok(measured)
}

/// Which of the columns `:xid` and `:seq` of `:table` take null. A constraint that is only a list of `is not null` is known as
/// such; so is one that was not validated, because it holds for new rows.
pub(crate) const NULLABLE_COLUMNS: &str = "
    select attname from pg_attribute
    where attrelid = :table::regclass and attname in (:xid, :seq) and not attnotnull and not exists (
        select from pg_constraint, pg_get_expr(conbin, conrelid) as condition
        where conrelid = attrelid and contype = 'c' and condition !~ ' OR |CASE |NOT \\('
            and quote_ident(attname) || ' IS NOT NULL' = any (string_to_array(translate(condition, '()', ''), ' AND '))
    )";

/// The reader finds no row without a seq or a transaction id. Where the table refuses new ones, those that there are were there
/// before it got these columns: somebody else has published them.
async fn count_unpublishable(
    session: &Session,
    mapping: &Mapping,
) -> Result<Option<UnpublishableRows>, DatabaseError> {
    let [xid, seq, event_id] = mapping.quoted_columns();
    let (table, nullable) = (mapping.table(), mapping.fill_in(NULLABLE_COLUMNS));
    // The lowest bigint is behind no position.
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

/// Due is what the checkpoint has not come to: rows above the highest seq that is done, and those of
/// transactions that were open when it was stored. Inside a window that is nearly all; what is left of
/// the stragglers before it is not counted.
async fn ask(client: &Session, config: &SourceConfig) -> Result<Measured, DatabaseError> {
    let (outbox, table) = (config.mapping.outbox(), quoted(config.mapping.table()));
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
         ), due as (
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
             from due
         )
         select counted.rows,
             date_part('epoch', clock_timestamp() - counted.oldest),
             (select max(seq) from {outbox}), (select min(seq) from {outbox}),
             coalesce(
                 (select sum(pg_total_relation_size(relid))::bigint from pg_partition_tree({table})),
                 pg_total_relation_size({table})),
             ({} select count(*) from parked_key),
             (select count(*) from (
                  select from relay_dead_letters where source = $1 limit {MAX_LETTERS}) as letters),
             checkpoint.age_s, checkpoint.place, checkpoint.done
         from counted, checkpoint",
        parked_keys("$1")
    );
    let row = client.query_one(&sql, &[&config.name, &i64::MIN]).await?;
    let (counted, oldest_age_s): (i64, Option<f64>) = (row.try_get(0)?, row.try_get(1)?);
    let (newest_seq, oldest_seq): (Option<i64>, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
    let done_seq: i64 = row.try_get(9)?;
    // Where nothing was shipped yet, what comes before the oldest row is as good as done.
    let done_seq = oldest_seq.map_or(done_seq, |seq| done_seq.max(seq.saturating_sub(1)));
    let newest_seq = newest_seq.unwrap_or(done_seq);
    let is_estimate = counted >= MAX_COUNTED;
    let rows = match is_estimate {
        true => counted.max(newest_seq.saturating_sub(done_seq)),
        false => counted,
    };
    Ok(Measured {
        pending: Pending {
            rows,
            is_estimate,
            oldest_age_s: oldest_age_s.map(|age_s| age_s.max(0.0)),
            newest_seq,
            done_seq,
        },
        outbox_bytes: row.get::<_, Option<i64>>(4).unwrap_or(0),
        parked_keys: row.get(5),
        dead_letters: row.get(6),
        checkpoint_age: row
            .get::<_, Option<f64>>(7)
            .and_then(|age_s| Duration::try_from_secs_f64(age_s).ok()),
        checkpoint: row.get(8),
        leader: None,
        unpublishable: None,
    })
}
