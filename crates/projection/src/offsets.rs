//! The SQL of `projection_offsets`.

use std::collections::BTreeMap;

use diesel::{QueryResult, QueryableByName, sql_types::*};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};

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

#[derive(QueryableByName)]
struct NextOffset {
    #[diesel(sql_type = BigInt)]
    next_offset: i64,
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
        let found: Vec<NextOffset> = diesel::sql_query(
            "select next_offset from projection_offsets where projection = $1 and topic = $2",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .load(conn)
        .await?;
        Ok(!found.is_empty())
    }

    /// Returns the next offset of a partition. Stores `earliest` for a new one.
    pub(crate) async fn load_or_create(
        &self,
        conn: &mut AsyncPgConnection,
        partition: i32,
        earliest: i64,
    ) -> QueryResult<i64> {
        diesel::sql_query(
            "insert into projection_offsets (projection, topic, partition, next_offset)
             values ($1, $2, $3, $4) on conflict do nothing",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .bind::<Integer, _>(partition)
        .bind::<BigInt, _>(earliest)
        .execute(conn)
        .await?;
        let NextOffset { next_offset } = diesel::sql_query(
            "select next_offset from projection_offsets
             where projection = $1 and topic = $2 and partition = $3",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .bind::<Integer, _>(partition)
        .get_result(conn)
        .await?;
        Ok(next_offset)
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
