//! Deletes the stored offsets of a projection, so that the next start applies its topic from the beginning.

use anyhow::{Context as _, Result, ensure};
use diesel::{
    QueryableByName,
    sql_types::{Bool, Text},
};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};
use uuid::Uuid;

use crate::{
    RebuildOptions,
    offsets::{Offsets, ensure_projection_exists},
    rebuild::{LOCK_KEY, rebuild_name},
    topic::Topic,
    topic_log::TopicLog,
};

/// The effect of [`reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetMode {
    /// Changes nothing.
    DryRun,
    /// Deletes the stored offsets and those of an interrupted rebuild.
    Delete,
}

/// The stored offset of a partition beside the topic.
#[derive(Clone, Debug)]
pub struct ResetPartition {
    /// The partition.
    pub partition: i32,
    /// The stored offset of the next record.
    pub next_offset: i64,
    /// The id of the topic that the stored offset belongs to, if it is known.
    pub stored_topic_id: Option<Uuid>,
    /// The id of the topic now; `None` if it does not exist or the brokers do not know ids.
    pub topic_id: Option<Uuid>,
    /// The offsets of the first record and after the last one; `None` if the partition does not exist.
    pub offsets: Option<(i64, i64)>,
}

/// Deletes the stored offsets of a projection in its topic, and returns them. Records are then applied again, which
/// changes no row that is newer.
///
/// # Errors
/// If the projection has no offsets for the topic, a consumer or a rebuild is running, or Kafka or the database fails.
pub async fn reset(
    conn: &mut AsyncPgConnection,
    options: &RebuildOptions,
    mode: ResetMode,
) -> Result<Vec<ResetPartition>> {
    let RebuildOptions {
        brokers,
        name,
        topic,
    } = options;
    ensure_projection_exists(conn, name).await?;
    let partitions = compare(conn, options).await?;
    ensure!(
        !partitions.is_empty(),
        "projection {name} has no offsets for topic {topic} in this database"
    );
    if mode == ResetMode::DryRun {
        return Ok(partitions);
    }
    let members = Topic::for_group(brokers, topic, name)?.count_group_members(name)?;
    ensure!(
        members == 0,
        "consumer group {name} has running members: {members}. Stop the service, and run this command again when their sessions \
         have timed out, after about 10 s."
    );
    delete(conn, name, topic).await?;
    Ok(partitions)
}

async fn compare(
    conn: &mut AsyncPgConnection,
    options: &RebuildOptions,
) -> Result<Vec<ResetPartition>> {
    let RebuildOptions {
        brokers,
        name: projection,
        topic,
    } = options;
    let stored = Offsets { projection, topic }.load_all(conn).await?;
    let client = Topic::for_group(brokers, topic, projection)?;
    let topic_id = match TopicLog::new(brokers, topic).topic_id().await {
        Err(kafka_client::Error::UnknownTopic(_)) => None,
        topic_id => topic_id?,
    };
    let existing = match topic_id {
        Some(_) => client.partitions()?,
        None => client.partitions().unwrap_or_default(),
    };
    let partitions = stored.into_iter().map(|(partition, stored)| {
        let offsets = existing.contains(&partition);
        Ok(ResetPartition {
            partition,
            next_offset: stored.next,
            stored_topic_id: stored.log.topic_id,
            topic_id,
            offsets: match offsets {
                true => Some(client.watermarks(partition)?),
                false => None,
            },
        })
    });
    partitions.collect()
}

#[derive(QueryableByName)]
struct Locked {
    #[diesel(sql_type = Bool)]
    is_locked: bool,
}

async fn delete(conn: &mut AsyncPgConnection, name: &str, topic: &str) -> Result<()> {
    let deleted = conn.transaction(async |conn| {
        let lock = format!("select pg_try_advisory_xact_lock({LOCK_KEY}) as is_locked");
        let Locked { is_locked } = diesel::sql_query(lock).get_result(conn).await?;
        ensure!(is_locked, "a rebuild is running in this database");
        // Without its offsets, the next rebuild restarts.
        diesel::sql_query(
            "delete from projection_offsets where projection in ($1, $2) and topic = $3",
        )
        .bind::<Text, _>(name)
        .bind::<Text, _>(rebuild_name(name))
        .bind::<Text, _>(topic)
        .execute(conn)
        .await
        .context("failed to delete the stored offsets")?;
        Ok(())
    });
    deleted.await
}
