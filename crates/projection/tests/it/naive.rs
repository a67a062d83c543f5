//! Followers as they are often written. A scenario that finds no fault with them would find none with
//! anybody.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use diesel::{QueryResult, QueryableByName, sql_types::*};
use diesel_async::{
    AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, pooled_connection::deadpool::Pool,
};
use projection::{Options, Projection, Record};
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, Headers as _},
    types::RDKafkaRespErr,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

const MAX_BATCH_RECORDS: usize = 1_000;
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// What is wrong with a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Its offsets are Kafka's, stored as soon as a record is in its hands.
    AutoCommit,
    /// Its offsets are moved with the records, wherever they were before.
    NoCompare,
    /// Its offsets are moved before the records are applied, in a transaction of their own.
    TwoTransactions,
}

/// From which offset to go on, and how many changes are before it, by partition.
type Moves = BTreeMap<i32, (i64, i64)>;

/// Follows until `shutdown`, on a thread of its own.
pub(crate) fn follow_naively<P: Projection>(
    flaw: Flaw,
    options: Options,
    projection: Arc<P>,
    pool: Pool<AsyncPgConnection>,
    shutdown: CancellationToken,
) -> thread::JoinHandle<()> {
    let table = Arc::new(Table {
        flaw,
        options,
        pool,
        runtime: Handle::current(),
    });
    thread::spawn(move || {
        while !shutdown.is_cancelled() {
            // A member whose name was taken over is rejected, and joins anew.
            if let Err(error) = consume(&table, &*projection, &shutdown) {
                println!("a naive follower begins anew: {error}");
            }
        }
    })
}

fn consume<P: Projection>(
    table: &Arc<Table>,
    projection: &P,
    shutdown: &CancellationToken,
) -> KafkaResult<()> {
    let options = &table.options;
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.brokers)
        .set("group.id", &options.name)
        .set("session.timeout.ms", "10000")
        .set("auto.offset.reset", "earliest")
        // Committed when a partition goes away, and not at a time that no test can tell.
        .set("auto.commit.interval.ms", "600000")
        .set(
            "enable.auto.commit",
            (table.flaw == Flaw::AutoCommit).to_string(),
        );
    if let Some(instance_id) = &options.instance_id {
        config.set("group.instance.id", instance_id);
    }
    let consumer: BaseConsumer<Context> = config.create_with_context(Context(Arc::clone(table)))?;
    consumer.subscribe(&[&options.topic])?;
    while !shutdown.is_cancelled() {
        let batch = next_batch(&consumer)?;
        if !batch.is_empty() {
            let applied = table.runtime.block_on(table.apply(projection, &batch));
            applied.expect("a naive follower knows no errors of a database");
        }
    }
    Ok(())
}

fn next_batch(consumer: &BaseConsumer<Context>) -> KafkaResult<Vec<BorrowedMessage<'_>>> {
    let mut batch = Vec::new();
    let mut timeout = POLL_TIMEOUT;
    while batch.len() < MAX_BATCH_RECORDS {
        match consumer.poll(timeout) {
            Some(Ok(message)) => batch.push(message),
            Some(Err(KafkaError::MessageConsumptionFatal(code))) if batch.is_empty() => {
                return Err(KafkaError::MessageConsumptionFatal(code));
            }
            _ => break,
        }
        timeout = Duration::ZERO;
    }
    Ok(batch)
}

/// The tables, and the offsets beside them where they are not Kafka's.
struct Table {
    flaw: Flaw,
    options: Options,
    pool: Pool<AsyncPgConnection>,
    runtime: Handle,
}

#[derive(QueryableByName)]
struct NextOffset {
    #[diesel(sql_type = BigInt)]
    next_offset: i64,
}

impl Table {
    async fn apply<P: Projection>(
        &self,
        projection: &P,
        batch: &[BorrowedMessage<'_>],
    ) -> QueryResult<()> {
        let (mut changes, mut moves) = (Vec::new(), Moves::new());
        for message in batch {
            let change = projection.decode(&record(message));
            changes.extend(change.expect("only good records here"));
            let (next, count) = moves.entry(message.partition()).or_default();
            (*next, *count) = (message.offset() + 1, *count + 1);
        }
        let mut conn = self.pool.get().await.expect("a connection");
        if self.flaw == Flaw::TwoTransactions {
            self.move_offsets(&mut conn, &moves).await?;
        }
        conn.transaction(async |conn| {
            if self.flaw == Flaw::NoCompare {
                self.move_offsets(conn, &moves).await?;
            }
            projection.apply(conn, &changes).await
        })
        .await?;
        projection.applied(&changes);
        Ok(())
    }

    async fn move_offsets(&self, conn: &mut AsyncPgConnection, moves: &Moves) -> QueryResult<()> {
        for (partition, (next, count)) in moves {
            diesel::sql_query(
                "update projection_offsets set next_offset = $1, applied = applied + $2
                 where projection = $3 and partition = $4",
            )
            .bind::<BigInt, _>(next)
            .bind::<BigInt, _>(count)
            .bind::<Text, _>(&self.options.name)
            .bind::<Integer, _>(partition)
            .execute(conn)
            .await?;
        }
        Ok(())
    }

    async fn next_offset(&self, partition: i32) -> QueryResult<i64> {
        let mut conn = self.pool.get().await.expect("a connection");
        let begin = "insert into projection_offsets (projection, topic, partition, next_offset)
                     values ($1, $2, $3, 0)
                     on conflict on constraint projection_offsets_pkey
                     do update set updated_at = now() returning next_offset";
        let NextOffset { next_offset } = diesel::sql_query(begin)
            .bind::<Text, _>(&self.options.name)
            .bind::<Text, _>(&self.options.topic)
            .bind::<Integer, _>(partition)
            .get_result(&mut conn)
            .await?;
        Ok(next_offset)
    }
}

fn record<'a>(message: &'a BorrowedMessage<'a>) -> Record<'a> {
    let place = (message.partition(), message.offset());
    let headers = message.headers().into_iter().flat_map(|all| all.iter());
    let headers = headers.map(|header| (header.key, header.value)).collect();
    Record::new(place, message.key(), message.payload(), Some(headers))
}

/// Assigns partitions.
struct Context(Arc<Table>);

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let result = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                if self.0.flaw != Flaw::AutoCommit {
                    self.begin(partitions);
                }
                consumer.assign(partitions)
            }
            _ => consumer.unassign(),
        };
        result.expect("an assignment");
    }
}

impl Context {
    /// Lets partitions begin where the table says.
    fn begin(&self, partitions: &mut TopicPartitionList) {
        let Table {
            runtime, options, ..
        } = &*self.0;
        let elements = partitions.elements();
        let numbers: Vec<i32> = elements.iter().map(|e| e.partition()).collect();
        for number in numbers {
            let next = runtime.block_on(self.0.next_offset(number));
            let next = Offset::Offset(next.expect("an offset"));
            let set = partitions.set_partition_offset(&options.topic, number, next);
            set.expect("a partition of the list");
        }
    }
}
