//! What waits in a source's database: rows that are not published, and what else is known of them there alone.

use std::time::Duration;

use crate::{
    config::{Mapping, SourceConfig},
    postgres::{
        leader,
        reader::quoted,
        session::{self, DatabaseError, Session},
    },
};

/// Rows that are counted one by one; beyond them the number is an estimate. It bounds what the
/// statement costs, a few milliseconds, however long a relay was away.
const MAX_COUNTED: i64 = 1_000;

/// As the reader's: rows are found by the two indexes, whatever the planner believes. Whatever the
/// statement waits for, it gives up long before the next one.
const SESSION: &str = "set enable_seqscan = off;
    set enable_bitmapscan = off;
    set jit = off;
    set max_parallel_workers_per_gather = 0;
    set statement_timeout = '2s'";

/// What was measured in a source's database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) pending: Pending,
    /// How large the outbox is, with its indexes.
    pub(crate) outbox_bytes: i64,
    /// The checkpoint's age, by the database's clock.
    pub(crate) checkpoint_age: Option<Duration>,
    /// The checkpoint as text: it moves if this changes.
    pub(crate) checkpoint: String,
    /// Who holds the source's lock, where this relay stands by.
    pub(crate) leader: Option<String>,
    pub(crate) unpublishable: Option<UnpublishableRows>,
}

/// Rows without a seq or a transaction id: nothing can tell when they were committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnpublishableRows {
    pub(crate) table: String,
    pub(crate) rows: i64,
    /// There may be more.
    pub(crate) is_minimum: bool,
    /// The event id of one of them, as its column has it.
    pub(crate) example: String,
}

/// Rows that are committed and not published.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    pub(crate) rows: i64,
    /// There are too many to be counted; the number is taken from seq, which has gaps.
    pub(crate) is_estimate: bool,
    /// The age of the oldest of them, in seconds; none where rows don't tell when they were written.
    pub(crate) oldest_age_s: Option<f64>,
    /// The highest seq there is.
    pub(crate) newest_seq: i64,
    /// The highest seq that was published.
    pub(crate) done_seq: i64,
}

/// Measures a source's database, again and again in one session.
#[derive(Debug)]
pub(crate) struct Backlog {
    session: Session,
}

impl Backlog {
    pub(crate) async fn connect(config: &SourceConfig) -> Result<Self, DatabaseError> {
        let session = session::connect(&config.database_url, "outbox-relay backlog").await?;
        session.batch_execute(SESSION).await?;
        Ok(Self { session })
    }

    /// What waits now.
    pub(crate) async fn measure(&self, config: &SourceConfig) -> Result<Measured, DatabaseError> {
        let mut measured = ask(&self.session, config).await?;
        if !config.mapping.is_own() {
            let unpublishable = count_unpublishable(&self.session, &config.mapping);
            measured.unpublishable = unpublishable.await?;
        }
        Ok(measured)
    }

    /// The session, to ask it for what else is in the database.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The session that holds the source's lock, for people.
    pub(crate) async fn leader(
        &self,
        config: &SourceConfig,
    ) -> Result<Option<String>, DatabaseError> {
        leader::holder(&self.session, &config.name).await
    }
}

/// Which of the columns `:xid` and `:seq` of `:table` take null. A constraint that is only a list of `is not null` is known as
/// such; so is one that was not validated, because it holds for new rows. (Since Postgres 18 one may not be enforced.)
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

/// The reader finds no row without a seq or a transaction id. Where the table rejects new ones, those that there are were there
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
             checkpoint.age_s, checkpoint.place, checkpoint.done
         from counted, checkpoint"
    );
    let row = client.query_one(&sql, &[&config.name, &i64::MIN]).await?;
    let (counted, oldest_age_s): (i64, Option<f64>) = (row.try_get(0)?, row.try_get(1)?);
    let (newest_seq, oldest_seq): (Option<i64>, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
    let done_seq: i64 = row.try_get(7)?;
    // Where nothing was published yet, what comes before the oldest row is as good as done.
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
        checkpoint_age: row
            .get::<_, Option<f64>>(5)
            .and_then(|age_s| Duration::try_from_secs_f64(age_s).ok()),
        checkpoint: row.get(6),
        leader: None,
        unpublishable: None,
    })
}
