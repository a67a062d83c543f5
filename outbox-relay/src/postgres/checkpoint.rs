//! The checkpoint of a source: the SQL to claim, advance, read and reset it.

use std::time::Duration;

use tokio_postgres::{Row, error::SqlState, types::ToSql};

use crate::{
    config::{Mapping, SourceConfig},
    hints,
    postgres::{
        session::{DatabaseError, Session},
        snapshot::Snapshot,
        window::{Cursor, Position},
    },
};

/// The state that a new leader takes over.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The epoch of this leader. Updates with a lower epoch have no effect.
    pub(crate) epoch: i64,
    /// Everything up to this position was published and acknowledged.
    pub(crate) cursor: Cursor,
    /// Distinguishes this source from those of the same name in other databases.
    pub(crate) instance: String,
    /// The age of the previous leader's last heartbeat. `None` if it resigned with nothing in flight.
    pub(crate) predecessor_age: Option<Duration>,
    /// The process id of the session's backend.
    pub(crate) pid: i32,
    /// The oid of the database.
    pub(crate) database_oid: u32,
    /// True if there are parked events, or dead letters that are not in their topic yet.
    pub(crate) has_rejected_events: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("failed to access the checkpoint")]
    Database(#[from] DatabaseError),
    /// The snapshots belong to another cluster.
    #[error(
        "the checkpoint belongs to another Postgres cluster. If this database was restored from a dump or moved by pg_upgrade, \
         run `outbox-relay reset --source {0}` to publish all rows of the outbox again"
    )]
    OtherCluster(String),
    /// The snapshots and sequence numbers belong to another table.
    #[error(
        "the checkpoint belongs to another table than {table}. {}", hints::for_other_table(.source_name)
    )]
    OtherTable {
        /// The configured table.
        table: String,
        source_name: String,
    },
    /// The relay does not repair such rows in a mapped table.
    #[error(
        "{table} has rows from another Postgres cluster, whose transaction ids are ahead of this cluster's. {}",
        hints::for_foreign_rows_of(.table, .xid)
    )]
    ForeignRows {
        /// The configured table.
        table: String,
        /// The column with the transaction id.
        xid: String,
    },
    #[error("the outbox has no column created_at; use --to-seq, or set source.columns.created_at")]
    NoCreatedAt,
    #[error("a relay leads this source; stop it first")]
    HasLeader,
    #[error("another relay took over this source")]
    Superseded,
    #[error("a rejected row was deleted from the outbox before it was parked or dead-lettered")]
    RowDeleted,
    #[error("a rejected row shares its seq and its event id with another row")]
    SharedEventId,
}

/// Selects the identifier of this Postgres cluster, which survives a failover.
const SYSTEM_IDENTIFIER: &str = "(select system_identifier from pg_control_system())";

/// Runs a statement that contains [`SYSTEM_IDENTIFIER`]. If the role may not read it, or the server does not have it, runs the
/// statement with null instead.
async fn query_with_system_identifier(
    session: &Session,
    sql: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Option<Row>, DatabaseError> {
    match session.query_opt(sql, params).await {
        Err(err)
            if matches!(
                err.code(),
                Some(&SqlState::INSUFFICIENT_PRIVILEGE | &SqlState::FEATURE_NOT_SUPPORTED)
            ) =>
        {
            let sql = sql.replace(SYSTEM_IDENTIFIER, "null::bigint");
            session.query_opt(&sql, params).await
        }
        result => result,
    }
}

/// Returns the identifier of this Postgres cluster. `None` if the role lacks the privilege, or the server has none.
pub(crate) async fn read_system_identifier(
    session: &Session,
) -> Result<Option<i64>, DatabaseError> {
    let sql = format!("select {SYSTEM_IDENTIFIER}");
    let row = query_with_system_identifier(session, &sql, &[]).await?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Records a new leader and returns the checkpoint. The caller must hold the source's lock.
pub(crate) async fn claim(
    session: &Session,
    config: &SourceConfig,
) -> Result<Claim, CheckpointError> {
    let (source, mapping) = (&config.name, &config.mapping);
    let has_pending_dead_letters = match config.dead_letter_topic {
        Some(_) => {
            "exists (select from relay_dead_letters where source = $1 and in_topic = 'pending')"
        }
        None => "false",
    };
    let sql = format!(
        "with before as (
             select * from relay_checkpoints where source = $1 for update
         ), cluster as materialized (
             select {SYSTEM_IDENTIFIER} as id
         ), created as (
             insert into relay_checkpoints
                 (source, epoch, snapshot, max_seq, heartbeat_at, resigned, system_identifier, outbox)
             select $1, 1, '1:1:', $2, clock_timestamp(), false, id, to_regclass($3)
             from cluster where not exists (select from before)
             returning *
         ), claimed as (
             update relay_checkpoints as now
             set epoch = now.epoch + 1, resigned = false, heartbeat_at = clock_timestamp(),
                 system_identifier = coalesce(now.system_identifier, id),
                 outbox = coalesce(now.outbox, to_regclass($3))
             from before, cluster where now.source = before.source
             returning now.*
         )
         select now.epoch, now.snapshot, now.max_seq, now.window_snapshot, now.window_seq, now.window_event_id,
             coalesce(before.resigned, true), date_part('epoch', clock_timestamp() - before.heartbeat_at),
             now.instance::text, now.system_identifier <> cluster.id, now.outbox <> to_regclass($3),
             pg_backend_pid(), (select oid from pg_database where datname = current_database()),
             exists (select from relay_parked where source = $1) or {has_pending_dead_letters}
         from (select * from created union all select * from claimed) as now
             left join before using (source) cross join cluster"
    );
    let params: [&(dyn ToSql + Sync); 3] =
        [source, &Cursor::beginning().max_seq(), &mapping.table()];
    let row = query_with_system_identifier(session, &sql, &params).await?;
    let row = row.ok_or(CheckpointError::Superseded)?;
    if row.get::<_, Option<bool>>(9) == Some(true) {
        return Err(CheckpointError::OtherCluster(source.clone()));
    }
    // Null if the table does not exist, which the reader reports better.
    if row.get::<_, Option<bool>>(10) == Some(true) {
        return Err(CheckpointError::OtherTable {
            table: mapping.table().to_owned(),
            source_name: source.clone(),
        });
    }
    let (resigned, age_s): (bool, Option<f64>) = (row.get(6), row.get(7));
    let age = age_s.and_then(|age_s| Duration::try_from_secs_f64(age_s).ok());
    Ok(Claim {
        epoch: row.get(0),
        cursor: parse_cursor(&row, 1),
        instance: row.get(8),
        predecessor_age: (!resigned).then_some(age.unwrap_or_default()),
        pid: row.get(11),
        database_oid: row.get(12),
        has_rejected_events: row.get(13),
    })
}

/// Reads a checkpoint without claiming it.
pub(crate) async fn read_cursor(
    session: &Session,
    source: &str,
) -> Result<Cursor, CheckpointError> {
    let sql = "select snapshot, max_seq, window_snapshot, window_seq, window_event_id
               from relay_checkpoints where source = $1";
    let row = session.query_opt(sql, &[&source]).await?;
    Ok(row.map_or_else(Cursor::beginning, |row| parse_cursor(&row, 0)))
}

/// Decodes the five columns of a cursor, which start at `first`.
fn parse_cursor(row: &Row, first: usize) -> Cursor {
    let (start_snapshot, max_seq): (Snapshot, i64) = (row.get(first), row.get(first + 1));
    let (end_snapshot, seq): (Option<Snapshot>, Option<i64>) =
        (row.get(first + 2), row.get(first + 3));
    let event_id = row.get(first + 4);
    let window = end_snapshot.zip(seq);
    let window = window.map(|(end_snapshot, seq)| (end_snapshot, Position { seq, event_id }));
    Cursor::new(start_snapshot, max_seq, window)
}

/// The leader's next step after it has stored a checkpoint.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum AfterStore {
    Continue,
    /// Nothing is in flight, so the successor does not wait.
    Resign,
}

/// Stores the checkpoint and a heartbeat.
///
/// The commit is synchronous, whatever the database's default. Otherwise a crash could undo a transaction that the cursor
/// includes, and Postgres could reuse its id.
pub(crate) async fn advance(
    session: &Session,
    source: &str,
    epoch: i64,
    cursor: &Cursor,
    next: AfterStore,
) -> Result<(), CheckpointError> {
    let window = cursor.window();
    let updated = session
        .execute(
            "update relay_checkpoints
             set snapshot = $3, max_seq = $4,
                 window_snapshot = $5, window_seq = $6, window_event_id = $7,
                 heartbeat_at = clock_timestamp(), resigned = $8
             where source = $1 and epoch = $2",
            &[
                &source,
                &epoch,
                cursor.start_snapshot(),
                &cursor.max_seq(),
                &window.map(|window| window.end_snapshot.as_ref()),
                &window.map(|window| window.position.seq),
                &window.and_then(|window| window.position.event_id),
                &(next == AfterStore::Resign),
            ],
        )
        .await?;
    if updated == 1 {
        Ok(())
    } else {
        Err(CheckpointError::Superseded)
    }
}

/// The position to which a checkpoint is reset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ResetTo {
    /// The oldest row in the outbox.
    Beginning,
    /// The row with this seq.
    Seq(i64),
    /// The first row written at or after this time, in seconds since 1970-01-01 UTC.
    UnixSeconds(f64),
}

/// Moves the checkpoint back and returns the seq after which the next leader starts. That is less than requested if an
/// earlier row is unpublished. The checkpoint's row keeps its epoch and heartbeat.
pub(crate) async fn reset(
    session: &Session,
    source: &str,
    mapping: &Mapping,
    to: ResetTo,
) -> Result<i64, CheckpointError> {
    let (seq, seconds) = match to {
        ResetTo::Beginning => (Some(i64::MIN), None),
        ResetTo::Seq(seq) => (Some(seq), None),
        ResetTo::UnixSeconds(seconds) => (None, Some(seconds)),
    };
    if seconds.is_some() && !mapping.has_created_at() {
        return Err(CheckpointError::NoCreatedAt);
    }
    adopt_foreign_rows(session, mapping).await?;
    // Stores an open window from the beginning to the current snapshot, read up to that seq. Rows that are not visible now are
    // not in the window, and come as late rows of the next one. The condition for unpublished rows is that of the reader's
    // `pending`.
    let outbox = mapping.outbox();
    let sql = format!(
        "with start as (
            select least(
                coalesce(
                    (select greatest($2::bigint, min(seq)) from {outbox}
                     where $2::bigint is not null having min(seq) is not null),
                    (select min(seq) from {outbox} where created_at >= to_timestamp($3::float8)),
                    (select least(max(seq), 9223372036854775806) + 1 from {outbox}
                     having max(seq) is not null), 1),
                (select min(seq) from {outbox}, relay_checkpoints
                 where source = $1 and (
                     seq > greatest(max_seq, window_seq)
                     or not pg_visible_in_snapshot(xid, snapshot)
                         and (window_seq is null or seq > window_seq
                             or seq = window_seq and window_event_id is not null
                             or not pg_visible_in_snapshot(xid, window_snapshot))))
            ) as seq
        ), cluster as materialized (
            select {SYSTEM_IDENTIFIER} as id
        )
        update relay_checkpoints
        set snapshot = '1:1:', max_seq = $5::bigint, window_snapshot = pg_current_snapshot(),
            window_seq = greatest(start.seq, $5::bigint + 1) - 1,
            window_event_id = null, system_identifier = cluster.id,
            instance = case when system_identifier is distinct from cluster.id then gen_random_uuid() else instance end,
            outbox = to_regclass($4)
        from start, cluster where source = $1
        returning window_seq"
    );
    let params: [&(dyn ToSql + Sync); 5] = [&source, &seq, &seconds, &mapping.table(), &i64::MIN];
    let updated = query_with_system_identifier(session, &sql, &params).await?;
    Ok(updated.map_or(0, |row| row.get(0)))
}

/// Replaces transaction ids that are ahead of this cluster's. The change commits before the caller takes a snapshot, which
/// therefore includes the new ids. Returns an error for a mapped table: the relay does not change it.
async fn adopt_foreign_rows(session: &Session, mapping: &Mapping) -> Result<(), CheckpointError> {
    if mapping.is_own() {
        session
            .execute("select outbox_adopt_foreign_rows()", &[])
            .await?;
        return Ok(());
    }
    let sql = format!(
        "select exists (
             select from {} where xid >= pg_snapshot_xmax(pg_current_snapshot()))",
        mapping.outbox()
    );
    if session.query_one(&sql, &[]).await?.get(0) {
        let (table, xid) = (mapping.table().to_owned(), mapping.xid().to_owned());
        return Err(CheckpointError::ForeignRows { table, xid });
    }
    Ok(())
}
