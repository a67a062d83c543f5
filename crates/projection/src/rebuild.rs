//! Rebuilds a projection's tables from their topic beside the live ones, and swaps them.
//!
//! The new tables are created in their own schema and filled by the projection's `apply`, which finds them
//! through the search path. The rebuild stores its offsets with them, so an interrupted rebuild resumes.
//!
//! The swap is one transaction. It blocks the consumer, applies the remaining records, replaces the tables,
//! and sets the consumer's offsets. The consumer detects the change and continues from the new offsets.

mod batch;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use cli::print_error;
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Integer, Text},
};
use diesel_async::{
    AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _,
};

pub(crate) use self::tables::LOCK_KEY;
pub use self::tables::drop_replaced;
use self::{
    batch::{Batch, read_batch},
    tables::{NEW, OLD, prepare_tables},
};
use crate::{
    Projection,
    apply::{self, Outcome},
    offsets::{OffsetRanges, Offsets, StoredOffset, ensure_projection_exists},
    topic::{Topic, TopicConsumer},
    topic_log::{RESET_HINT, TopicLog},
};

/// A projection whose tables can be rebuilt.
pub trait Rebuildable: Projection {
    /// The tables that only `apply` writes. Its statements must name them and their constraints without a
    /// schema.
    const TABLES: &'static [&'static str];

    /// Updates other tables that depend on the new ones, in the transaction of the swap. During the rebuild
    /// `apply` may have applied records that readers of the old tables had not seen yet.
    ///
    /// # Errors
    /// Database errors.
    fn after_swap(
        &self,
        conn: &mut AsyncPgConnection,
    ) -> impl Future<Output = diesel::QueryResult<()>> + Send {
        let _ = conn;
        async { Ok(()) }
    }
}

/// The projection and its topic.
#[derive(Clone, Debug)]
pub struct RebuildOptions {
    /// The bootstrap brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The name of the projection in `projection_offsets`.
    pub name: String,
    /// The topic of the projection.
    pub topic: String,
}

const POLL_TIMEOUT: Duration = Duration::from_millis(200);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum records that remain when the swap starts. It applies them while the consumer is blocked.
const MAX_REMAINING_RECORDS: i64 = 1_000;
/// The limit for applying the remaining records while the consumer is blocked.
const SWAP_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers of the tables queue behind the swap while it waits for its locks.
const SET_LOCK_TIMEOUT: &str = "set local lock_timeout = '1s'";
/// The new tables contain at least the records that the live ones contain, so the epochs hold for them too.
const COPY_EPOCHS: &str = "update projection_offsets as new
     set leader_epoch = live.leader_epoch, epoch_offset = live.epoch_offset
     from projection_offsets as live
     where live.projection = $1 and new.projection = $2 and live.topic = $3 and new.topic = $3
       and live.partition = new.partition";
const MAX_SWAPS: u32 = 5;

/// The statistics of a rebuild.
#[derive(Clone, Copy, Debug)]
pub struct RebuildStats {
    /// The number of records that this run applied.
    pub records: u64,
    /// The duration of this run.
    pub took: Duration,
}

/// Rebuilds the tables and swaps them. Prints its progress on standard error. `swap_conn` is a second
/// connection to the same database.
///
/// # Errors
/// If the projection has no offsets for the topic, the topic is incomplete, replaced tables of an earlier
/// rebuild still exist, another rebuild is running, or Kafka or the database fails. Run it again to resume.
pub async fn rebuild<P: Rebuildable>(
    conn: &mut AsyncPgConnection,
    swap_conn: &mut AsyncPgConnection,
    projection: &P,
    options: &RebuildOptions,
) -> Result<RebuildStats> {
    ensure_projection_exists(conn, &options.name).await?;
    let live = Offsets {
        projection: &options.name,
        topic: &options.topic,
    };
    ensure!(
        live.exist(conn).await?,
        "projection {} has no offsets for topic {} in this database",
        options.name,
        options.topic
    );
    let topic = Topic::new(&options.brokers, &options.topic)?;
    topic.ensure_complete().await?;
    let mut log = TopicLog::new(&options.brokers, &options.topic);
    ensure_same_log(&mut log, &live.load_all(conn).await?, &options.topic).await?;
    let topic_id = log.topic_id().await?;
    let name = rebuild_name(&options.name);
    let offsets = Offsets {
        projection: &name,
        topic: &options.topic,
    };
    prepare_tables(conn, P::TABLES, &offsets).await?;
    let mut positions = OffsetRanges::new();
    for partition in topic.partitions()? {
        let (earliest, _) = topic.watermarks(partition)?;
        let loading = offsets.load_or_create(conn, partition, earliest, topic_id);
        let next = loading.await?.next;
        positions.insert(partition, (next, next));
    }
    ensure_same_log(&mut log, &offsets.load_all(conn).await?, &options.topic).await?;
    // Created before the run, because it must outlive the messages that the run has read ahead: dropping a
    // consumer waits for these without a limit.
    let consumer = topic.consumer_from(&positions)?;
    let mut run = RebuildRun {
        projection,
        offsets,
        log,
        ahead: None,
        positions,
        at_end: BTreeSet::new(),
        records: 0,
        started: Instant::now(),
    };
    run.catch_up(conn, &consumer, &topic).await?;
    let mut swaps = 0;
    while let Err(err) = run
        .swap(conn, swap_conn, &consumer, &options.name, P::TABLES)
        .await
    {
        // The consumer continues. Catch up with it before the next attempt.
        swaps += 1;
        if swaps == MAX_SWAPS {
            return Err(err.context(
                "failed to replace the live tables; the new ones are complete. Run the rebuild again: it \
                 resumes where it stopped.",
            ));
        }
        print_error(format_args!("failed to swap the tables, retrying: {err:#}"));
        run.catch_up(conn, &consumer, &topic).await?;
    }
    Ok(RebuildStats {
        records: run.records,
        took: run.started.elapsed(),
    })
}

/// Checks that the topic's log is the one that these offsets belong to.
async fn ensure_same_log(
    log: &mut TopicLog,
    stored: &BTreeMap<i32, StoredOffset>,
    topic: &str,
) -> Result<()> {
    for (partition, stored) in stored {
        if let Some(change) = log.find_change(*partition, stored.log).await? {
            bail!("topic {topic} {change}. {RESET_HINT}");
        }
    }
    Ok(())
}

pub(crate) fn rebuild_name(name: &str) -> String {
    format!("{name} rebuild")
}

/// A rebuild in progress.
struct RebuildRun<'a, P: Projection> {
    projection: &'a P,
    offsets: Offsets<'a>,
    log: TopicLog,
    /// The batch that was read ahead.
    ahead: Option<Batch<'a, P::Change>>,
    /// An empty range at the next offset of each partition.
    positions: OffsetRanges,
    /// The partitions that were applied up to their end.
    at_end: BTreeSet<i32>,
    records: u64,
    started: Instant,
}

impl<'a, P: Rebuildable> RebuildRun<'a, P> {
    /// Applies records until at most [`MAX_REMAINING_RECORDS`] remain.
    async fn catch_up(
        &mut self,
        conn: &mut AsyncPgConnection,
        consumer: &'a TopicConsumer,
        topic: &Topic,
    ) -> Result<()> {
        let mut last_progress = Instant::now();
        loop {
            let ends = topic.end_offsets(self.positions.keys().copied())?;
            if self.remaining(&ends) <= MAX_REMAINING_RECORDS {
                return Ok(());
            }
            // Reading the end offsets costs a round trip, so not with every batch.
            while self.remaining(&ends) > MAX_REMAINING_RECORDS {
                self.apply_batch(conn, consumer).await?;
                if last_progress.elapsed() >= PROGRESS_INTERVAL {
                    last_progress = Instant::now();
                    self.print_progress(self.remaining(&ends));
                }
            }
        }
    }

    fn next_offset(&self, partition: i32) -> i64 {
        self.positions.get(&partition).map_or(0, |(next, _)| *next)
    }

    /// Returns the number of offsets up to these ends; 0 for a partition that was applied up to its end.
    /// Some have no record, because of compaction or a transaction.
    fn remaining(&self, ends: &[(i32, i64)]) -> i64 {
        let unfinished = ends.iter().filter(|(p, _)| !self.at_end.contains(p));
        unfinished
            .map(|(p, end)| (end - self.next_offset(*p)).max(0))
            .sum()
    }

    /// Applies a batch, and reads the next one at the same time. Waits at most [`POLL_TIMEOUT`] for records.
    async fn apply_batch(
        &mut self,
        conn: &mut AsyncPgConnection,
        consumer: &'a TopicConsumer,
    ) -> Result<()> {
        let Batch {
            messages,
            decoded,
            at_end,
        } = match self.ahead.take() {
            Some(batch) => batch,
            None => read_batch(consumer, self.projection, POLL_TIMEOUT).await?,
        };
        if messages.is_empty() {
            self.at_end.extend(at_end);
            return Ok(());
        }
        let applying = apply::apply_batch(
            self.projection,
            &self.offsets,
            conn,
            &self.positions,
            &messages,
            &decoded,
            &|| {},
        );
        let reading = read_batch(consumer, self.projection, Duration::ZERO);
        let (outcome, ahead) = tokio::join!(applying, reading);
        ensure!(
            outcome? != Outcome::OffsetConflict,
            "another rebuild of the same tables is running"
        );
        for (partition, (_, to)) in apply::offset_ranges(&self.positions, &messages) {
            self.positions.insert(partition, (to, to));
            self.at_end.remove(&partition);
        }
        self.at_end.extend(at_end);
        self.records += messages.len() as u64;
        self.ahead = Some(ahead?).filter(|batch| !batch.is_empty());
        Ok(())
    }

    fn print_progress(&self, remaining: i64) {
        let per_s = self.records as f64 / self.started.elapsed().as_secs_f64();
        let remaining_time = Duration::from_secs_f64(remaining as f64 / per_s.max(1.0));
        print_error(format_args!(
            "applied {} records ({per_s:.0} records/s); at most {remaining} records, about {} s remaining",
            self.records,
            remaining_time.as_secs()
        ));
    }

    /// Replaces the live tables with the new ones.
    async fn swap(
        &mut self,
        conn: &mut AsyncPgConnection,
        swap_conn: &mut AsyncPgConnection,
        consumer: &'a TopicConsumer,
        name: &str,
        tables: &[&str],
    ) -> Result<()> {
        let swap = swap_conn.transaction(async |swap_conn| {
            swap_conn.batch_execute(SET_LOCK_TIMEOUT).await?;
            let started = Instant::now();
            let topic = self.offsets.topic;
            // The consumer applies nothing after this statement.
            let live: Vec<LiveOffset> = diesel::sql_query(
                "select partition, next_offset from projection_offsets
                 where projection = $1 and topic = $2 for update",
            )
            .bind::<Text, _>(name)
            .bind::<Text, _>(topic)
            .load(swap_conn)
            .await?;
            ensure!(
                !live.is_empty(),
                "projection {name} has no offsets for topic {topic} in this database"
            );
            // The new tables must not be older than the live ones.
            while live
                .iter()
                .any(|live| self.next_offset(live.partition) < live.next_offset)
            {
                ensure!(
                    started.elapsed() < SWAP_TIMEOUT,
                    "failed to apply the remaining records within {} s",
                    SWAP_TIMEOUT.as_secs()
                );
                self.apply_batch(conn, consumer).await?;
            }
            let mut sql = format!("create schema {OLD};");
            for table in tables {
                sql += &format!(
                    "alter table public.{table} set schema {OLD};
                     alter table {NEW}.{table} set schema public;"
                );
            }
            sql += &format!("drop schema {NEW};");
            // Waits for all open transactions that have read the old tables.
            swap_conn.batch_execute(&sql).await?;
            self.projection.after_swap(swap_conn).await?;
            diesel::sql_query(COPY_EPOCHS)
                .bind::<Text, _>(name)
                .bind::<Text, _>(self.offsets.projection)
                .bind::<Text, _>(topic)
                .execute(swap_conn)
                .await?;
            for statement in [
                "delete from projection_offsets where projection = $1 and topic = $2",
                "delete from dead_letters where projection = $1 and topic = $2",
            ] {
                diesel::sql_query(statement)
                    .bind::<Text, _>(name)
                    .bind::<Text, _>(topic)
                    .execute(swap_conn)
                    .await?;
            }
            for table in ["projection_offsets", "dead_letters"] {
                diesel::sql_query(format!(
                    "update {table} set projection = $1 where projection = $2 and topic = $3"
                ))
                .bind::<Text, _>(name)
                .bind::<Text, _>(self.offsets.projection)
                .bind::<Text, _>(topic)
                .execute(swap_conn)
                .await?;
            }
            // The topic may have been recreated during the rebuild.
            let live = Offsets {
                projection: name,
                topic,
            };
            let stored = live.load_all(swap_conn).await?;
            ensure_same_log(&mut self.log, &stored, topic).await
        });
        swap.await
    }
}

#[derive(QueryableByName)]
struct LiveOffset {
    #[diesel(sql_type = Integer)]
    partition: i32,
    #[diesel(sql_type = BigInt)]
    next_offset: i64,
}
