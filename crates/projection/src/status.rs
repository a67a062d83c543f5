//! The lag of a projection behind its topic.

use std::time::SystemTime;

use anyhow::Result;
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Integer, Text},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use serde::Serialize;

use crate::{RebuildOptions, offsets::ensure_projection_exists, topic::Topic};

/// The progress of a projection in a partition.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: i32,
    /// The offset of the next record to apply; `None` if the partition was never consumed.
    pub next_offset: Option<i64>,
    /// The offset after the last record.
    pub end_offset: i64,
    /// The number of offsets from the first pending record to the end. In a compacted topic some of them
    /// have no record.
    pub lag_records: i64,
    /// The age of the first pending record in seconds; 0 if there is none.
    pub lag_s: f64,
    /// Records applied, including those that changed nothing.
    pub applied: i64,
    /// Records skipped.
    pub skipped: i64,
    /// Records dead-lettered.
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

/// Compares a projection's stored offsets with the end of its topic.
///
/// # Errors
/// If the projection does not exist, or Kafka or the database fails.
pub async fn status(
    conn: &mut AsyncPgConnection,
    options: &RebuildOptions,
) -> Result<Vec<PartitionStatus>> {
    ensure_projection_exists(conn, &options.name).await?;
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
        // There may be no record before the end, only gaps of compaction and markers of transactions.
        let pending = if next < end {
            topic.first_record(partition, next.max(earliest))?
        } else {
            None
        };
        all.push(PartitionStatus {
            partition,
            next_offset: row.map(|row| row.next_offset),
            end_offset: end,
            lag_records: pending.map_or(0, |(offset, _)| end - offset),
            lag_s: match pending {
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
