//! What waits in a source's database: asked every few seconds, whoever leads.
//!
//! A standby asks, too: so there are figures also while nobody can lead.

use std::{convert::Infallible, time::Duration};

use tokio_postgres::Client;

use crate::{
    config::SourceConfig,
    leader,
    reader::{parked_keys, quoted},
    session::{self, DatabaseError, answered},
    status::{Measured, Pending, Role, SharedStatus},
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
    session: &mut Option<Client>,
    config: &SourceConfig,
    status: &SharedStatus,
) -> Result<Measured, DatabaseError> {
    let client = match session.take() {
        Some(client) => client,
        None => {
            let client = session::connect(&config.database_url, "outbox-relay backlog").await?;
            answered(async { Ok::<_, DatabaseError>(client.batch_execute(SESSION).await?) })
                .await?;
            client
        }
    };
    let mut measured = answered(ask(&client, config)).await?;
    if status.get().role == Role::Standby {
        measured.leader = answered(leader::holder(&client, &config.name)).await?;
    }
    *session = Some(client);
    Ok(measured)
}

/// Due is what the checkpoint has not come to: rows above the highest seq that is done, and those of
/// transactions that were open when it was stored. Inside a window that is nearly all; what is left of
/// the stragglers before it is not counted.
async fn ask(client: &Client, config: &SourceConfig) -> Result<Measured, DatabaseError> {
    let (outbox, table) = (config.mapping.outbox(), quoted(config.mapping.table()));
    let sql = format!(
        "with stored as (
             select coalesce(window_snapshot, snapshot) as seen,
                 greatest(max_seq, coalesce(window_seq, 0)) as done,
                 date_part('epoch', clock_timestamp() - heartbeat_at) as age_s,
                 concat_ws(' ', snapshot, max_seq, window_snapshot, window_seq) as place
             from relay_checkpoints where source = $1
         ), checkpoint as (
             select * from stored
             union all
             select '1:1:', 0::bigint, null, '' where not exists (select from stored)
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
             coalesce((select max(seq) from {outbox}), 0)::bigint,
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
    let row = client.query_one(&sql, &[&config.name]).await?;
    let (counted, oldest_age_s): (i64, Option<f64>) = (row.try_get(0)?, row.try_get(1)?);
    let (newest_seq, done_seq): (i64, i64) = (row.try_get(2)?, row.try_get(8)?);
    let is_estimate = counted >= MAX_COUNTED;
    let rows = match is_estimate {
        true => counted.max(newest_seq - done_seq),
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
        outbox_bytes: row.get::<_, Option<i64>>(3).unwrap_or(0),
        parked_keys: row.get(4),
        dead_letters: row.get(5),
        checkpoint_age: row
            .get::<_, Option<f64>>(6)
            .and_then(|age_s| Duration::try_from_secs_f64(age_s).ok()),
        checkpoint: row.get(7),
        leader: None,
    })
}
