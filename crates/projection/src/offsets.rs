//! The SQL of `projection_offsets`.

use std::collections::BTreeMap;

use diesel::{
    QueryResult, QueryableByName,
    sql_types::{Array, BigInt, Integer, Nullable, Text},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use uuid::Uuid;

use crate::topic_log::{Epoch, LogIdentity};

/// Ranges of offsets by partition: the first, and the one after the last.
pub(crate) type OffsetRanges = BTreeMap<i32, (i64, i64)>;

/// The number of records by outcome.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) applied: i64,
    pub(crate) skipped: i64,
    pub(crate) dead_lettered: i64,
}

/// The stored offsets of a projection in a topic.
#[derive(Debug)]
pub(crate) struct Offsets<'a> {
    pub(crate) projection: &'a str,
    pub(crate) topic: &'a str,
}

/// The stored offset of a partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredOffset {
    /// The offset of the next record.
    pub(crate) next: i64,
    pub(crate) log: LogIdentity,
}

#[derive(QueryableByName)]
struct StoredRow {
    #[diesel(sql_type = Integer)]
    partition: i32,
    #[diesel(sql_type = BigInt)]
    next_offset: i64,
    #[diesel(sql_type = Nullable<diesel::sql_types::Uuid>)]
    topic_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Integer>)]
    leader_epoch: Option<i32>,
    #[diesel(sql_type = Nullable<BigInt>)]
    epoch_offset: Option<i64>,
}

impl From<StoredRow> for StoredOffset {
    fn from(row: StoredRow) -> Self {
        let epoch = row.leader_epoch.zip(row.epoch_offset);
        Self {
            next: row.next_offset,
            log: LogIdentity {
                topic_id: row.topic_id,
                epoch: epoch.map(|(leader_epoch, offset)| Epoch {
                    leader_epoch,
                    offset,
                }),
            },
        }
    }
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    projection: String,
}

/// Checks that this database has a projection of this name. Without the check, a command with a wrong
/// name or database would succeed and report nothing.
///
/// # Errors
/// If there is no such projection; the error lists the existing ones.
pub(crate) async fn ensure_projection_exists(
    conn: &mut AsyncPgConnection,
    name: &str,
) -> anyhow::Result<()> {
    let names: Vec<Name> =
        diesel::sql_query("select distinct projection from projection_offsets order by projection")
            .load(conn)
            .await?;
    let names: Vec<String> = names.into_iter().map(|name| name.projection).collect();
    anyhow::ensure!(
        names.iter().any(|known| known == name),
        "projection {name} not found in this database; existing: {}. Check CONSUMER_GROUP and the database URL.",
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    );
    Ok(())
}

/// Prevents all consumers of a projection from applying records until the transaction ends.
pub(crate) async fn lock(conn: &mut AsyncPgConnection, projection: &str) -> QueryResult<()> {
    diesel::sql_query(
        "select from projection_offsets where projection = $1 order by topic, partition for update",
    )
    .bind::<Text, _>(projection)
    .execute(conn)
    .await?;
    Ok(())
}

impl Offsets<'_> {
    /// Returns whether an offset is stored for the topic.
    pub(crate) async fn exist(&self, conn: &mut AsyncPgConnection) -> QueryResult<bool> {
        Ok(!self.load_all(conn).await?.is_empty())
    }

    /// Returns the stored offset of a partition. Stores `earliest` for a new one, and `topic_id` if none is stored.
    pub(crate) async fn load_or_create(
        &self,
        conn: &mut AsyncPgConnection,
        partition: i32,
        earliest: i64,
        topic_id: Option<Uuid>,
    ) -> QueryResult<StoredOffset> {
        diesel::sql_query(
            "insert into projection_offsets (projection, topic, partition, next_offset, topic_id)
             values ($1, $2, $3, $4, $5) on conflict do nothing",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .bind::<Integer, _>(partition)
        .bind::<BigInt, _>(earliest)
        .bind::<Nullable<diesel::sql_types::Uuid>, _>(topic_id)
        .execute(conn)
        .await?;
        let adopted = diesel::sql_query(
            "update projection_offsets set topic_id = $4
             where projection = $1 and topic = $2 and partition = $3 and topic_id is null
               and $4 is not null",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .bind::<Integer, _>(partition)
        .bind::<Nullable<diesel::sql_types::Uuid>, _>(topic_id)
        .execute(conn)
        .await?;
        if adopted > 0 {
            let (projection, topic) = (self.projection, self.topic);
            tracing::info!(%projection, %topic, partition, ?topic_id, "stored offset had no topic id, adopted the current one");
        }
        let stored: StoredRow = diesel::sql_query(
            "select partition, next_offset, topic_id, leader_epoch, epoch_offset from projection_offsets
             where projection = $1 and topic = $2 and partition = $3",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .bind::<Integer, _>(partition)
        .get_result(conn)
        .await?;
        Ok(stored.into())
    }

    /// Returns the stored offsets by partition.
    pub(crate) async fn load_all(
        &self,
        conn: &mut AsyncPgConnection,
    ) -> QueryResult<BTreeMap<i32, StoredOffset>> {
        let rows: Vec<StoredRow> = diesel::sql_query(
            "select partition, next_offset, topic_id, leader_epoch, epoch_offset
             from projection_offsets where projection = $1 and topic = $2",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .load(conn)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.partition, row.into()))
            .collect())
    }

    /// Stores epochs of partitions of the topic with this id, unless they are older than the stored ones.
    ///
    /// One statement for each row: a statement that locks several rows could deadlock with
    /// [`compare_and_set`](Self::compare_and_set).
    pub(crate) async fn store_epochs(
        &self,
        conn: &mut AsyncPgConnection,
        topic_id: Option<Uuid>,
        epochs: &BTreeMap<i32, Epoch>,
    ) -> QueryResult<()> {
        for (partition, epoch) in epochs {
            diesel::sql_query(
                "update projection_offsets set leader_epoch = $5, epoch_offset = $6
                 where projection = $1 and topic = $2 and topic_id is not distinct from $3
                   and partition = $4 and next_offset >= $6
                   and (epoch_offset is null or epoch_offset <= $6)",
            )
            .bind::<Text, _>(self.projection)
            .bind::<Text, _>(self.topic)
            .bind::<Nullable<diesel::sql_types::Uuid>, _>(topic_id)
            .bind::<Integer, _>(*partition)
            .bind::<Integer, _>(epoch.leader_epoch)
            .bind::<BigInt, _>(epoch.offset)
            .execute(conn)
            .await?;
        }
        Ok(())
    }

    /// Advances the offset of each partition from the start to the end of its range. Returns false if an
    /// offset is not at its start: another consumer has advanced it. The rows stay locked until the
    /// transaction ends.
    pub(crate) async fn compare_and_set(
        &self,
        conn: &mut AsyncPgConnection,
        ranges: &OffsetRanges,
        counts: &BTreeMap<i32, Counts>,
    ) -> QueryResult<bool> {
        let count = |of: fn(&Counts) -> i64| -> Vec<i64> {
            let counts = ranges.keys().map(|partition| counts.get(partition));
            counts.map(|counts| counts.map_or(0, of)).collect()
        };
        let updated = diesel::sql_query(
            "update projection_offsets as o set next_offset = m.new, updated_at = now(),
                 applied = o.applied + m.applied, skipped = o.skipped + m.skipped,
                 dead_lettered = o.dead_lettered + m.dead_lettered
             from unnest($3::integer[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                 $8::bigint[]) as m (partition, expected, new, applied, skipped, dead_lettered)
             where o.projection = $1 and o.topic = $2 and o.partition = m.partition
               and o.next_offset = m.expected",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .bind::<Array<Integer>, _>(ranges.keys().copied().collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(ranges.values().map(|(from, _)| *from).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(ranges.values().map(|(_, to)| *to).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(count(|counts| counts.applied))
        .bind::<Array<BigInt>, _>(count(|counts| counts.skipped))
        .bind::<Array<BigInt>, _>(count(|counts| counts.dead_lettered))
        .execute(conn)
        .await?;
        Ok(updated == ranges.len())
    }
}
