//! Consumers with common flaws. A scenario must detect them, or it would not detect a flaw of the crate.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use diesel::{QueryResult, QueryableByName, sql_types::*};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use postgres_session::Pool;
use projection::{ConsumerConfig, Projection, Record};
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

/// The flaw of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It commits offsets to Kafka, stored as soon as a record is polled.
    AutoCommit,
    /// It advances its offsets with the records, without comparing the stored ones.
    NoCompare,
    /// It advances its offsets in a separate transaction before it applies the records.
    TwoTransactions,
}

/// The next offset and the number of changes before it, by partition.
type Advances = BTreeMap<i32, (i64, i64)>;

/// Spawns a consumer that runs until `shutdown`.
pub(crate) fn spawn_naive_consumer<P: Projection>(
    flaw: Flaw,
    config: ConsumerConfig,
    projection: Arc<P>,
    pool: Pool,
    shutdown: CancellationToken,
) -> thread::JoinHandle<()> {
    let table = Arc::new(Table {
        flaw,
        config,
        pool,
        runtime: Handle::current(),
    });
    thread::spawn(move || {
        while !shutdown.is_cancelled() {
            // A member whose instance id was taken over is fenced, and joins again.
            if let Err(error) = consume(&table, &*projection, &shutdown) {
                println!("naive consumer failed, restarting: {error}");
            }
        }
    })
}

fn consume<P: Projection>(
    table: &Arc<Table>,
    projection: &P,
    shutdown: &CancellationToken,
) -> KafkaResult<()> {
    let consumer_config = &table.config;
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &consumer_config.brokers)
        .set("group.id", &consumer_config.name)
        .set("session.timeout.ms", "10000")
        .set("auto.offset.reset", "earliest")
        // Commit when a partition is revoked, and not at a random time.
        .set("auto.commit.interval.ms", "600000")
        .set(
            "enable.auto.commit",
            (table.flaw == Flaw::AutoCommit).to_string(),
        );
    if let Some(instance_id) = &consumer_config.instance_id {
        config.set("group.instance.id", instance_id);
    }
    let consumer: BaseConsumer<Context> = config.create_with_context(Context(Arc::clone(table)))?;
    consumer.subscribe(&[&consumer_config.topic])?;
    while !shutdown.is_cancelled() {
        let batch = poll_batch(&consumer)?;
        if !batch.is_empty() {
            let applied = table.runtime.block_on(table.apply(projection, &batch));
            applied.expect("no database errors");
        }
    }
    Ok(())
}

fn poll_batch(consumer: &BaseConsumer<Context>) -> KafkaResult<Vec<BorrowedMessage<'_>>> {
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

/// The tables, and the offsets if they are not committed to Kafka.
struct Table {
    flaw: Flaw,
    config: ConsumerConfig,
    pool: Pool,
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
        let (mut changes, mut advances) = (Vec::new(), Advances::new());
        for message in batch {
            let change = projection.decode(&record(message));
            changes.extend(change.expect("valid records"));
            let (next, count) = advances.entry(message.partition()).or_default();
            (*next, *count) = (message.offset() + 1, *count + 1);
        }
        let mut conn = self.pool.get().await.expect("a connection");
        if self.flaw == Flaw::TwoTransactions {
            self.advance_offsets(&mut conn, &advances).await?;
        }
        conn.transaction(async |conn| {
            if self.flaw == Flaw::NoCompare {
                self.advance_offsets(conn, &advances).await?;
            }
            projection.apply(conn, &changes).await
        })
        .await?;
        projection.after_commit(&changes);
        Ok(())
    }

    async fn advance_offsets(
        &self,
        conn: &mut AsyncPgConnection,
        advances: &Advances,
    ) -> QueryResult<()> {
        for (partition, (next, count)) in advances {
            diesel::sql_query(
                "update projection_offsets set next_offset = $1, applied = applied + $2
                 where projection = $3 and partition = $4",
            )
            .bind::<BigInt, _>(next)
            .bind::<BigInt, _>(count)
            .bind::<Text, _>(&self.config.name)
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
            .bind::<Text, _>(&self.config.name)
            .bind::<Text, _>(&self.config.topic)
            .bind::<Integer, _>(partition)
            .get_result(&mut conn)
            .await?;
        Ok(next_offset)
    }
}

fn record<'a>(message: &'a BorrowedMessage<'a>) -> Record<'a> {
    let position = (message.partition(), message.offset());
    let headers = message.headers().into_iter().flat_map(|all| all.iter());
    let headers = headers.map(|header| (header.key, header.value)).collect();
    Record::new(position, message.key(), message.payload(), Some(headers))
}

/// The rebalance callbacks.
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
                    self.set_offsets(partitions);
                }
                consumer.assign(partitions)
            }
            _ => consumer.unassign(),
        };
        result.expect("an assignment");
    }
}

impl Context {
    /// Sets the stored offsets of partitions.
    fn set_offsets(&self, partitions: &mut TopicPartitionList) {
        let Table {
            runtime, config, ..
        } = &*self.0;
        let elements = partitions.elements();
        let numbers: Vec<i32> = elements.iter().map(|e| e.partition()).collect();
        for number in numbers {
            let next = runtime.block_on(self.0.next_offset(number));
            let next = Offset::Offset(next.expect("an offset"));
            let set = partitions.set_partition_offset(&config.topic, number, next);
            set.expect("a partition of the list");
        }
    }
}
