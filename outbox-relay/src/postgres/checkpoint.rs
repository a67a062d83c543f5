//! The checkpoint of a source: the SQL to claim, advance, read and reset it.

use std::time::Duration;

use tokio_postgres::{Row, types::Type};

use crate::{
    config::Mapping,
    hints,
    postgres::{
        session::{DatabaseError, Session},
        window::{Cursor, MalformedSnapshot, Position},
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
    #[error("failed to parse the checkpoint")]
    Malformed(#[from] MalformedSnapshot),
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

/// Returns the identifier of this Postgres cluster, which survives a failover. `None` if the role lacks the privilege.
pub(crate) async fn read_system_identifier(
    session: &Session,
) -> Result<Option<i64>, DatabaseError> {
    let has_privilege = "select has_function_privilege('pg_control_system()', 'execute')";
    if !session
        .query_one(has_privilege, &[])
        .await?
        .get::<_, bool>(0)
    {
        return Ok(None);
    }
    let sql = "select system_identifier from pg_control_system()";
    Ok(Some(session.query_one(sql, &[]).await?.get(0)))
}

/// Records a new leader and returns the checkpoint. The caller must hold the source's lock.
pub(crate) async fn claim(
    session: &Session,
    source: &str,
    mapping: &Mapping,
) -> Result<Claim, CheckpointError> {
    let system_identifier = read_system_identifier(session).await?;
    session
        .execute(
            "insert into relay_checkpoints
                 (source, epoch, snapshot, max_seq, heartbeat_at, resigned)
             values ($1, 0, '1:1:', $2, clock_timestamp(), true)
             on conflict (source) do nothing",
            &[&source, &Cursor::beginning().max_seq()],
        )
        .await?;
    let row = session
        .query_one(
            "with before as (select * from relay_checkpoints where source = $1 for update)
             update relay_checkpoints as now
             set epoch = now.epoch + 1, resigned = false, heartbeat_at = clock_timestamp(),
                 system_identifier = coalesce(now.system_identifier, $2),
                 outbox = coalesce(now.outbox, to_regclass($3))
             from before where now.source = before.source
             returning now.epoch, before.snapshot::text, before.max_seq,
                 before.window_snapshot::text, before.window_seq, before.window_event_id, before.resigned,
                 date_part('epoch', clock_timestamp() - before.heartbeat_at), before.instance::text,
                 now.system_identifier, now.outbox <> to_regclass($3),
                 pg_backend_pid(),
                 (select oid from pg_database where datname = current_database())",
            &[&source, &system_identifier, &mapping.table()],
        )
        .await?;
    if system_identifier.is_some() && system_identifier != row.get(9) {
        return Err(CheckpointError::OtherCluster(source.to_owned()));
    }
    // Null if the table does not exist, which the reader reports better.
    if row.get::<_, Option<bool>>(10) == Some(true) {
        return Err(CheckpointError::OtherTable {
            table: mapping.table().to_owned(),
            source_name: source.to_owned(),
        });
    }
    let (resigned, age_s): (bool, f64) = (row.get(6), row.get(7));
    Ok(Claim {
        epoch: row.get(0),
        cursor: parse_cursor(&row, 1)?,
        instance: row.get(8),
        predecessor_age: (!resigned)
            .then(|| Duration::try_from_secs_f64(age_s).unwrap_or(Duration::ZERO)),
        pid: row.get(11),
        database_oid: row.get(12),
    })
}

/// Reads a checkpoint without claiming it.
pub(crate) async fn read_cursor(
    session: &Session,
    source: &str,
) -> Result<Cursor, CheckpointError> {
    let sql = "select snapshot::text, max_seq, window_snapshot::text, window_seq, window_event_id
               from relay_checkpoints where source = $1";
    match session.query_opt(sql, &[&source]).await? {
        Some(row) => Ok(parse_cursor(&row, 0)?),
        None => Ok(Cursor::beginning()),
    }
}

/// Parses the five columns of a cursor, which start at `first`.
fn parse_cursor(row: &Row, first: usize) -> Result<Cursor, MalformedSnapshot> {
    let (start_snapshot, max_seq): (&str, i64) = (row.get(first), row.get(first + 1));
    let (end_snapshot, seq): (Option<&str>, Option<i64>) = (row.get(first + 2), row.get(first + 3));
    let event_id = row.get(first + 4);
    let window = match end_snapshot.zip(seq) {
        Some((end_snapshot, seq)) => Some((end_snapshot.parse()?, Position { seq, event_id })),
        None => None,
    };
    Ok(Cursor::new(start_snapshot.parse()?, max_seq, window))
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
    // One round trip: an idle relay writes nothing else.
    let updated = session
        .execute_typed(
            "update relay_checkpoints
             set snapshot = $3::text::pg_snapshot, max_seq = $4,
                 window_snapshot = $5::text::pg_snapshot, window_seq = $6, window_event_id = $7,
                 heartbeat_at = clock_timestamp(), resigned = $8
             where source = $1 and epoch = $2",
            &[
                (&source, Type::TEXT),
                (&epoch, Type::INT8),
                (&cursor.start_snapshot().to_string(), Type::TEXT),
                (&cursor.max_seq(), Type::INT8),
                (
                    &window.map(|window| window.end_snapshot.to_string()),
                    Type::TEXT,
                ),
                (&window.map(|window| window.position.seq), Type::INT8),
                (
                    &window.and_then(|window| window.position.event_id),
                    Type::UUID,
                ),
                (&(next == AfterStore::Resign), Type::BOOL),
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
        )
        update relay_checkpoints
        set snapshot = '1:1:', max_seq = $6::bigint, window_snapshot = pg_current_snapshot(),
            window_seq = greatest(start.seq, $6::bigint + 1) - 1,
            window_event_id = null, system_identifier = $4,
            instance = case when system_identifier is distinct from $4 then gen_random_uuid() else instance end,
            outbox = to_regclass($5)
        from start where source = $1
        returning window_seq"
    );
    let system_identifier = read_system_identifier(session).await?;
    let updated = session
        .query_opt(
            &sql,
            &[
                &source,
                &seq,
                &seconds,
                &system_identifier,
                &mapping.table(),
                &i64::MIN,
            ],
        )
        .await?;
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
