//! How far a projection is behind its topic.

use std::time::SystemTime;

use anyhow::Result;
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Integer, Text},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use serde::Serialize;

use crate::{RebuildOptions, offsets::check_known, topic::Topic};

/// A partition, and how far it is applied.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    /// Which.
    pub partition: i32,
    /// The offset of the next record to apply; none if the partition was never read.
    pub next_offset: Option<i64>,
    /// The offset behind its last record.
    pub end_offset: i64,
    /// Offsets from the first record that waits to the end; 0 if none does. In a compacted topic not
    /// each has a record.
    pub lag_records: i64,
    /// How long ago the first record that waits was written; 0 if none does.
    pub lag_s: f64,
    /// Records that changed something, or were known already.
    pub applied: i64,
    /// Records of no concern.
    pub skipped: i64,
    /// Records that went to the dead letters.
    pub dead_lettered: i64,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Integer)]
    partition: i32,
    #[diesel(sql_type = BigInt)]
    next_offset: i64,
    #[diesel(sql_type = BigInt)]
    applied: i64,
    #[diesel(sql_type = BigInt)]
    skipped: i64,
    #[diesel(sql_type = BigInt)]
    dead_lettered: i64,
}

/// Compares a projection's offsets with its topic.
///
/// # Errors
/// If there is no such projection, or Kafka or the database can't be asked.
pub async fn status(
    conn: &mut AsyncPgConnection,
    options: &RebuildOptions,
) -> Result<Vec<PartitionStatus>> {
    check_known(conn, &options.name).await?;
    let topic = Topic::new(&options.brokers, &options.topic)?;
    let rows: Vec<Row> = diesel::sql_query(
        "select partition, next_offset, applied, skipped, dead_lettered from projection_offsets
         where projection = $1 and topic = $2",
    )
    .bind::<Text, _>(&options.name)
    .bind::<Text, _>(&options.topic)
    .load(conn)
    .await?;
    let mut all = Vec::new();
    for partition in topic.partitions()? {
        let (earliest, end) = topic.watermarks(partition)?;
        let row = rows.iter().find(|row| row.partition == partition);
        let next = row.map_or(earliest, |row| row.next_offset);
        // Between them there may be nothing left but gaps, and markers of transactions.
        let waiting = if next < end {
            topic.first_record(partition, next.max(earliest))?
        } else {
            None
        };
        all.push(PartitionStatus {
            partition,
            next_offset: row.map(|row| row.next_offset),
            end_offset: end,
            lag_records: waiting.map_or(0, |(offset, _)| end - offset),
            lag_s: match waiting {
                Some((_, written_ms)) => age_s(written_ms)?,
                None => 0.0,
            },
            applied: row.map_or(0, |row| row.applied),
            skipped: row.map_or(0, |row| row.skipped),
            dead_lettered: row.map_or(0, |row| row.dead_lettered),
        });
    }
    Ok(all)
}

fn age_s(written_ms: i64) -> Result<f64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok((now.as_millis() as i64 - written_ms).max(0) as f64 / 1_000.0)
}
