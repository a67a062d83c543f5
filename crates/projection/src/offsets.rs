//! The SQL of the offsets.

use std::collections::BTreeMap;

use diesel::{QueryResult, QueryableByName, sql_types::*};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};

/// From which offset to which, by partition.
pub(crate) type Moves = BTreeMap<i32, (i64, i64)>;

/// What became of records.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) applied: i64,
    pub(crate) skipped: i64,
    pub(crate) dead_lettered: i64,
}

/// What of the topic a projection has applied.
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

/// Whether this database has a projection of that name; an error that names those which it has, if
/// not. Whoever looks after one under a wrong name, or in a wrong database, would be told that all is
/// well.
pub(crate) async fn check_known(conn: &mut AsyncPgConnection, name: &str) -> anyhow::Result<()> {
    let names: Vec<Name> =
        diesel::sql_query("select distinct projection from projection_offsets order by projection")
            .load(conn)
            .await?;
    let names: Vec<String> = names.into_iter().map(|name| name.projection).collect();
    anyhow::ensure!(
        names.iter().any(|known| known == name),
        "this database has no projection {name} (CONSUMER_GROUP), but: {}",
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    );
    Ok(())
}

/// Keeps the followers of a projection from applying anything until the transaction ends.
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
    /// Whether anything is known of the topic.
    pub(crate) async fn are_known(&self, conn: &mut AsyncPgConnection) -> QueryResult<bool> {
        let known: Vec<NextOffset> = diesel::sql_query(
            "select next_offset from projection_offsets where projection = $1 and topic = $2",
        )
        .bind::<Text, _>(self.projection)
        .bind::<Text, _>(self.topic)
        .load(conn)
        .await?;
        Ok(!known.is_empty())
    }

    /// The next offset of a partition; a partition that was never read begins at `earliest`.
    pub(crate) async fn begin(
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

    /// Moves the offsets of all these partitions, or, if one is not where it was, returns false.
    /// The rows stay locked until the transaction ends, so that nobody else moves them meanwhile.
    pub(crate) async fn compare_and_set(
        &self,
        conn: &mut AsyncPgConnection,
        moves: &Moves,
        counts: &BTreeMap<i32, Counts>,
    ) -> QueryResult<bool> {
        let count = |of: fn(&Counts) -> i64| -> Vec<i64> {
            let counts = moves.keys().map(|partition| counts.get(partition));
            counts.map(|counts| counts.map_or(0, of)).collect()
        };
        let moved = diesel::sql_query(
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
        .bind::<Array<Integer>, _>(moves.keys().copied().collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(moves.values().map(|(from, _)| *from).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(moves.values().map(|(_, to)| *to).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(count(|counts| counts.applied))
        .bind::<Array<BigInt>, _>(count(|counts| counts.skipped))
        .bind::<Array<BigInt>, _>(count(|counts| counts.dead_lettered))
        .execute(conn)
        .await?;
        Ok(moved == moves.len())
    }
}
