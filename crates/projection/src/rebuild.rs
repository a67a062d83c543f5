//! Builds a projection's tables anew from their topic, beside the ones that serve, and swaps them.
//!
//! The new tables are made in a schema of their own and filled by the projection's own `apply`, which
//! finds them there by its search path. Offsets of the rebuild move with them, so that it goes on
//! where it was when it is ended in the middle. The swap is one transaction: it keeps the follower
//! from applying more, fills up what is missing until there, puts the new tables in the place of the
//! old ones, and the offset behind them. The follower finds it moved and goes on from there.

mod batch;
mod tables;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use cli::complain;
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Integer, Text},
};
use diesel_async::{
    AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _,
};

pub use self::tables::drop_replaced;
use self::{
    batch::{Batch, read_batch},
    tables::{NEW, OLD, prepare},
};
use crate::{
    Projection,
    apply::{self, Outcome},
    offsets::{Moves, Offsets, check_known},
    topic::{Topic, TopicConsumer},
};

/// A projection whose tables can be built anew.
pub trait Rebuildable: Projection {
    /// The tables that `apply` writes to and that hold nothing but what it wrote. Its statements name
    /// them, and their constraints, without a schema.
    const TABLES: &'static [&'static str];

    /// Does what follows from the new tables elsewhere in the database, in the transaction that puts
    /// them in their place. While they were made, `apply` has reacted to records that those who read
    /// the old tables had not heard of.
    ///
    /// # Errors
    /// The database's.
    fn swapped(
        &self,
        conn: &mut AsyncPgConnection,
    ) -> impl Future<Output = diesel::QueryResult<()>> + Send {
        let _ = conn;
        async { Ok(()) }
    }
}

/// What to build anew, from what.
#[derive(Clone, Debug)]
pub struct RebuildOptions {
    /// The brokers to begin with.
    pub brokers: String,
    /// The projection's name in its offsets.
    pub name: String,
    /// The topic.
    pub topic: String,
}

const POLL_TIMEOUT: Duration = Duration::from_millis(200);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// So near to the end the swap is tried; what comes meanwhile is filled up while the follower waits.
const NEAR_RECORDS: i64 = 1_000;
/// How long the last records may take while the follower waits.
const SWAP_TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever wants to read the tables waits behind the swap while that waits for its locks.
const SWAP_LIMIT: &str = "set local lock_timeout = '1s'";
const MAX_SWAPS: u32 = 5;

/// What a rebuild has done.
#[derive(Clone, Copy, Debug)]
pub struct Rebuilt {
    /// Records that were read, by this run.
    pub records: u64,
    /// How long that took.
    pub took: Duration,
}

/// Builds the tables anew and swaps them, telling of its progress on standard error. `follower` is a
/// second connection to the same database.
///
/// # Errors
/// If nobody follows the topic under this name, it may lack records, replaced tables of an earlier rebuild are still there, somebody
/// else rebuilds, or Kafka or the database fails. It can then be begun again, and goes on where it
/// was.
pub async fn rebuild<P: Rebuildable>(
    conn: &mut AsyncPgConnection,
    follower: &mut AsyncPgConnection,
    projection: &P,
    options: &RebuildOptions,
) -> Result<Rebuilt> {
    check_known(conn, &options.name).await?;
    let followed = Offsets {
        projection: &options.name,
        topic: &options.topic,
    };
    ensure!(
        followed.are_known(conn).await?,
        "nobody follows topic {} as {} here",
        options.topic,
        options.name
    );
    let topic = Topic::new(&options.brokers, &options.topic)?;
    topic.check_complete().await?;
    let name = rebuild_name(&options.name);
    let offsets = Offsets {
        projection: &name,
        topic: &options.topic,
    };
    prepare(conn, P::TABLES, &offsets).await?;
    let mut from = Moves::new();
    for partition in topic.partitions()? {
        let (earliest, _) = topic.watermarks(partition)?;
        let next = offsets.begin(conn, partition, earliest).await?;
        from.insert(partition, (next, next));
    }
    // Before the run, because it has to outlive the messages that the run has read ahead: librdkafka
    // waits for these, without end, when a consumer is dropped.
    let consumer = topic.consumer_from(&from)?;
    let mut run = Run {
        projection,
        offsets,
        ahead: None,
        from,
        read_out: BTreeSet::new(),
        records: 0,
        started: Instant::now(),
    };
    run.catch_up(conn, &consumer, &topic).await?;
    let mut swaps = 0;
    while let Err(err) = run
        .swap(conn, follower, &consumer, &options.name, P::TABLES)
        .await
    {
        // The follower goes on, and so do we, until it is worth another try.
        swaps += 1;
        if swaps == MAX_SWAPS {
            return Err(err.context(
                "the new tables are ready and can't take the place of the old ones; begin again, \
                 it goes on where it was",
            ));
        }
        complain(format_args!(
            "the tables can't be swapped yet ({err:#}), trying again"
        ));
        run.catch_up(conn, &consumer, &topic).await?;
    }
    Ok(Rebuilt {
        records: run.records,
        took: run.started.elapsed(),
    })
}

pub(crate) fn rebuild_name(name: &str) -> String {
    format!("{name} rebuild")
}

/// A rebuild that is going on.
struct Run<'a, P: Projection> {
    projection: &'a P,
    offsets: Offsets<'a>,
    /// What was read and not applied yet.
    ahead: Option<Batch<'a, P::Change>>,
    /// The next offset of each partition.
    from: Moves,
    /// Partitions of which everything that was there has been applied.
    read_out: BTreeSet<i32>,
    records: u64,
    started: Instant,
}

impl<'a, P: Rebuildable> Run<'a, P> {
    /// Applies until the topic's end is near.
    async fn catch_up(
        &mut self,
        conn: &mut AsyncPgConnection,
        consumer: &'a TopicConsumer,
        topic: &Topic,
    ) -> Result<()> {
        let mut told = Instant::now();
        loop {
            let ends = topic.ends(self.from.keys().copied())?;
            if self.left(&ends) <= NEAR_RECORDS {
                return Ok(());
            }
            // Asking for the ends costs a round trip: not with every batch.
            while self.left(&ends) > NEAR_RECORDS {
                self.apply_batch(conn, consumer).await?;
                if told.elapsed() >= PROGRESS_INTERVAL {
                    told = Instant::now();
                    self.tell(self.left(&ends));
                }
            }
        }
    }

    fn next(&self, partition: i32) -> i64 {
        self.from.get(&partition).map_or(0, |(next, _)| *next)
    }

    /// How many offsets there are up to these ends. Many may have no record: compaction has removed it,
    /// or it is one of Kafka's own. None are left where all was read up to an end.
    fn left(&self, ends: &[(i32, i64)]) -> i64 {
        let unread = ends.iter().filter(|(p, _)| !self.read_out.contains(p));
        unread.map(|(p, end)| (end - self.next(*p)).max(0)).sum()
    }

    /// Applies what has come, up to the bound, and meanwhile reads what comes behind it; waits a
    /// little if nothing has.
    async fn apply_batch(
        &mut self,
        conn: &mut AsyncPgConnection,
        consumer: &'a TopicConsumer,
    ) -> Result<()> {
        let Batch {
            messages,
            decoded,
            read_out,
        } = match self.ahead.take() {
            Some(batch) => batch,
            None => read_batch(consumer, self.projection, POLL_TIMEOUT).await?,
        };
        if messages.is_empty() {
            self.read_out.extend(read_out);
            return Ok(());
        }
        let applying = apply::apply(
            self.projection,
            &self.offsets,
            conn,
            &self.from,
            &messages,
            &decoded,
        );
        let reading = read_batch(consumer, self.projection, Duration::ZERO);
        let (outcome, ahead) = tokio::join!(applying, reading);
        ensure!(
            outcome? != Outcome::Overtaken,
            "somebody else is rebuilding the same tables"
        );
        for (partition, (_, to)) in apply::moves(&self.from, &messages) {
            self.from.insert(partition, (to, to));
            self.read_out.remove(&partition);
        }
        self.read_out.extend(read_out);
        self.records += messages.len() as u64;
        self.ahead = Some(ahead?).filter(|batch| !batch.is_empty());
        Ok(())
    }

    fn tell(&self, left: i64) {
        let per_s = self.records as f64 / self.started.elapsed().as_secs_f64();
        let rest = Duration::from_secs_f64(left as f64 / per_s.max(1.0));
        complain(format_args!(
            "{} records applied, {per_s:.0} a second; at most {left} and {} s to go",
            self.records,
            rest.as_secs()
        ));
    }

    /// Puts the new tables in the place of the old ones.
    async fn swap(
        &mut self,
        conn: &mut AsyncPgConnection,
        follower: &mut AsyncPgConnection,
        consumer: &'a TopicConsumer,
        name: &str,
        tables: &[&str],
    ) -> Result<()> {
        let swap = follower.transaction(async |follower| {
            follower.batch_execute(SWAP_LIMIT).await?;
            let started = Instant::now();
            let topic = self.offsets.topic;
            // From here on the follower applies nothing.
            let live: Vec<LiveOffset> = diesel::sql_query(
                "select partition, next_offset from projection_offsets
                 where projection = $1 and topic = $2 for update",
            )
            .bind::<Text, _>(name)
            .bind::<Text, _>(topic)
            .load(follower)
            .await?;
            ensure!(
                !live.is_empty(),
                "nobody follows topic {topic} as {name} here"
            );
            // A rebuild must not fall back behind what was served.
            while live
                .iter()
                .any(|live| self.next(live.partition) < live.next_offset)
            {
                ensure!(
                    started.elapsed() < SWAP_TIMEOUT,
                    "its last records take too long"
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
            // Waits for everybody who has read the old tables in a transaction that goes on.
            follower.batch_execute(&sql).await?;
            self.projection.swapped(follower).await?;
            for statement in [
                "delete from projection_offsets where projection = $1 and topic = $2",
                "delete from dead_letters where projection = $1 and topic = $2",
            ] {
                diesel::sql_query(statement)
                    .bind::<Text, _>(name)
                    .bind::<Text, _>(topic)
                    .execute(follower)
                    .await?;
            }
            for table in ["projection_offsets", "dead_letters"] {
                diesel::sql_query(format!(
                    "update {table} set projection = $1 where projection = $2 and topic = $3"
                ))
                .bind::<Text, _>(name)
                .bind::<Text, _>(self.offsets.projection)
                .bind::<Text, _>(topic)
                .execute(follower)
                .await?;
            }
            Ok(())
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
