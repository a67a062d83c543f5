//! Builds a projection's tables anew from their topic, beside the ones that serve, and swaps them.
//!
//! The new tables are made in a schema of their own and filled by the projection's own `apply`, which
//! finds them there by its search path. Offsets of the rebuild move with them, so that it goes on
//! where it was when it is ended in the middle. The swap is one transaction: it keeps the follower
//! from applying more, fills up what is missing until there, puts the new tables in the place of the
//! old ones, and the offset behind them. The follower finds it moved and goes on from there.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bool, Integer, Text},
};
use diesel_async::{
    AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _,
};
use rdkafka::{Message as _, consumer::BaseConsumer, error::KafkaError, message::BorrowedMessage};

use crate::{
    Projection,
    apply::{self, Outcome},
    decoded::Decoded,
    offsets::{Moves, Offsets, check_known},
    topic::Topic,
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

/// Where the tables are built ...
const NEW: &str = "projection_rebuild";
/// ... and where those go that they replace.
const OLD: &str = "projection_replaced";

/// Records of a transaction at most: more than while serving, because nobody waits for the lock.
const MAX_BATCH_RECORDS: usize = 10_000;
/// Bytes of their payloads, but for the last.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// A tenth of a millisecond or two.
const RECORDS_BETWEEN_YIELDS: usize = 50;
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
        eprintln!("the tables are busy ({err}), trying again");
        run.catch_up(conn, &consumer, &topic).await?;
    }
    Ok(Rebuilt {
        records: run.records,
        took: run.started.elapsed(),
    })
}

/// Drops the tables that a rebuild has replaced.
///
/// # Errors
/// The database's; also if something depends on one of them, such as a view, which still shows what
/// was replaced.
pub async fn drop_replaced(conn: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
    conn.batch_execute(&format!(
        "do $$
         declare replaced regclass;
         begin
             for replaced in
                 select oid from pg_class
                 where relnamespace = to_regnamespace('{OLD}') and relkind in ('r', 'p')
             loop
                 execute 'drop table ' || replaced;
             end loop;
             drop schema if exists {OLD};
         end $$"
    ))
    .await
}

pub(crate) fn rebuild_name(name: &str) -> String {
    format!("{name} rebuild")
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = Bool)]
    found: bool,
}

async fn is(conn: &mut AsyncPgConnection, condition: &str) -> Result<bool> {
    let Found { found } = diesel::sql_query(format!("select {condition} as found"))
        .get_result(conn)
        .await?;
    Ok(found)
}

/// Whether the new table has the columns that the one in use has: a migration may have come between.
fn is_alike(table: &str) -> String {
    let columns = |schema: &str| {
        format!(
            "array(select row(attname, atttypid, atttypmod, attnotnull)::text from pg_attribute
             where attrelid = to_regclass('{schema}.{table}') and attnum > 0 and not attisdropped
             order by attname)"
        )
    };
    format!("{} = {}", columns("public"), columns(NEW))
}

/// Makes the new tables, unless an earlier run has made the same ones from the same topic.
async fn prepare(
    conn: &mut AsyncPgConnection,
    tables: &[&str],
    offsets: &Offsets<'_>,
) -> Result<()> {
    let alone = "pg_try_advisory_lock(hashtextextended('projection rebuild', 0))";
    ensure!(is(conn, alone).await?, "somebody else is rebuilding it");
    ensure!(
        !is(conn, &format!("to_regnamespace('{OLD}') is not null")).await?,
        "the tables that the last rebuild has replaced are still there; look at them, then run the \
         same with --drop-old"
    );
    let mut can_go_on = offsets.are_known(conn).await?;
    for table in tables {
        can_go_on &= is(conn, &is_alike(table)).await?;
    }
    if !can_go_on {
        conn.transaction(async |conn| {
            let mut sql = format!("drop schema if exists {NEW} cascade; create schema {NEW};");
            for table in tables {
                sql += &format!("create table {NEW}.{table} (like public.{table} including all);");
            }
            conn.batch_execute(&sql).await?;
            // Of tables that were dropped just now, or by hand.
            for table in ["projection_offsets", "dead_letters"] {
                diesel::sql_query(format!("delete from {table} where projection = $1"))
                    .bind::<Text, _>(offsets.projection)
                    .execute(conn)
                    .await?;
            }
            Ok::<_, diesel::result::Error>(())
        })
        .await?;
    }
    // A rebuild is killed and begun again, so that it may lose its last commits: the offsets go with
    // them.
    conn.batch_execute(&format!(
        "set search_path = {NEW}, public; set synchronous_commit = off; set statement_timeout = '60s'"
    ))
    .await?;
    Ok(())
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
        consumer: &'a BaseConsumer,
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
        consumer: &'a BaseConsumer,
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
        eprintln!(
            "{} records applied, {per_s:.0} a second; at most {left} and {} s to go",
            self.records,
            rest.as_secs()
        );
    }

    /// Puts the new tables in the place of the old ones.
    async fn swap(
        &mut self,
        conn: &mut AsyncPgConnection,
        follower: &mut AsyncPgConnection,
        consumer: &'a BaseConsumer,
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

/// What was read together.
struct Batch<'a, C> {
    messages: Vec<BorrowedMessage<'a>>,
    /// What the messages come to.
    decoded: Decoded<C>,
    /// Partitions of which there was nothing behind these.
    read_out: BTreeSet<i32>,
}

impl<C> Batch<'_, C> {
    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.read_out.is_empty()
    }
}

/// Reads what is there, up to the bounds; waits for the first so long at most. It yields now and then,
/// so that a batch is applied meanwhile.
async fn read_batch<'a, P: Projection>(
    consumer: &'a BaseConsumer,
    projection: &P,
    mut timeout: Duration,
) -> Result<Batch<'a, P::Change>> {
    let mut batch = Batch {
        messages: Vec::new(),
        decoded: Decoded::default(),
        read_out: BTreeSet::new(),
    };
    let mut bytes = 0;
    while batch.messages.len() < MAX_BATCH_RECORDS && bytes < MAX_BATCH_BYTES {
        let Some(message) = consumer.poll(timeout) else {
            break;
        };
        timeout = Duration::ZERO;
        let message = match message {
            Err(KafkaError::PartitionEOF(partition)) => {
                batch.read_out.insert(partition);
                continue;
            }
            message => message.context("Kafka can't be read")?,
        };
        let index = batch.messages.len();
        batch.decoded.push(projection, index, &message);
        batch.read_out.remove(&message.partition());
        bytes += message.payload_len();
        batch.messages.push(message);
        if batch.messages.len().is_multiple_of(RECORDS_BETWEEN_YIELDS) {
            tokio::task::yield_now().await;
        }
    }
    Ok(batch)
}
