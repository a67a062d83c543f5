//! How far a source was published: the SQL that claims, moves and gives back its checkpoint.

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

/// What a new leader takes over.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The number of this leader. Updates by leaders before it change nothing from now on.
    pub(crate) epoch: i64,
    /// Everything up to here was published and acknowledged.
    pub(crate) cursor: Cursor,
    /// Tells this source from those of the same name in other databases.
    pub(crate) instance: String,
    /// The age of the last sign of life of the leader before; none if it left nothing on its way.
    pub(crate) predecessor_age: Option<Duration>,
    /// The session's number in the database.
    pub(crate) pid: i32,
    /// The database's own number in its cluster.
    pub(crate) database_oid: u32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("can't reach the checkpoint")]
    Database(#[from] DatabaseError),
    /// Its snapshots are of another cluster.
    #[error(
        "the checkpoint is of another Postgres: was this database restored from a dump, or moved by \
         pg_upgrade? If so, run `outbox-relay reset --source {0}`, which publishes every row that the \
         outbox still holds once more"
    )]
    Foreign(String),
    /// Its snapshots and numbers are of another table.
    #[error(
        "the checkpoint is of another table than {table}; {}", hints::for_other_table(.source_name)
    )]
    OtherTable {
        /// The table that is configured.
        table: String,
        source_name: String,
    },
    #[error("the checkpoint can't be read")]
    Malformed(#[from] MalformedSnapshot),
    /// It is of a table that others made.
    #[error(
        "{table} has rows of another Postgres, whose transaction ids are still to come in this one; {}",
        hints::for_foreign_rows_of(.table, .xid)
    )]
    ForeignRows {
        /// The table that is configured.
        table: String,
        /// Its column with the transaction id.
        xid: String,
    },
    #[error("the outbox has no column created_at; use --to-seq, or map one")]
    Timeless,
    #[error("a relay leads this source; stop it first")]
    Led,
    /// Another leader has taken over.
    #[error("another relay leads this source now")]
    Superseded,
    /// What was to be set aside isn't in the outbox any more.
    #[error("a row that was to be set aside was deleted meanwhile")]
    Gone,
    /// One of the rows that were to be set aside could not be told from the other.
    #[error("a row that was to be set aside shares its seq and its event id with another one")]
    SharedEventId,
}

/// What names this cluster of databases, and stays when a standby takes over; none if it may not be
/// asked for.
pub(crate) async fn system_identifier(session: &Session) -> Result<Option<i64>, DatabaseError> {
    let may_ask = "select has_function_privilege('pg_control_system()', 'execute')";
    if !session.query_one(may_ask, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "select system_identifier from pg_control_system()";
    Ok(Some(session.query_one(sql, &[]).await?.get(0)))
}

/// Makes the caller, who holds the source's lock, its leader on record.
pub(crate) async fn claim(
    session: &Session,
    source: &str,
    mapping: &Mapping,
) -> Result<Claim, CheckpointError> {
    let system_identifier = system_identifier(session).await?;
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
        return Err(CheckpointError::Foreign(source.to_owned()));
    }
    // Null while there is no such table, which reading tells better.
    if row.get::<_, Option<bool>>(10) == Some(true) {
        return Err(CheckpointError::OtherTable {
            table: mapping.table().to_owned(),
            source_name: source.to_owned(),
        });
    }
    let (resigned, age_s): (bool, f64) = (row.get(6), row.get(7));
    Ok(Claim {
        epoch: row.get(0),
        cursor: cursor(&row, 1)?,
        instance: row.get(8),
        predecessor_age: (!resigned)
            .then(|| Duration::try_from_secs_f64(age_s).unwrap_or(Duration::ZERO)),
        pid: row.get(11),
        database_oid: row.get(12),
    })
}

/// How far the source was published; nothing is claimed.
pub(crate) async fn read(session: &Session, source: &str) -> Result<Cursor, CheckpointError> {
    let sql = "select snapshot::text, max_seq, window_snapshot::text, window_seq, window_event_id
               from relay_checkpoints where source = $1";
    match session.query_opt(sql, &[&source]).await? {
        Some(row) => Ok(cursor(&row, 0)?),
        None => Ok(Cursor::beginning()),
    }
}

/// The five columns of it, from this one on.
fn cursor(row: &Row, first: usize) -> Result<Cursor, MalformedSnapshot> {
    let (seen, max_seq): (&str, i64) = (row.get(first), row.get(first + 1));
    let (upto, done_seq): (Option<&str>, Option<i64>) = (row.get(first + 2), row.get(first + 3));
    let event_id = row.get(first + 4);
    let window = match upto.zip(done_seq) {
        Some((upto, seq)) => Some((upto.parse()?, Position { seq, event_id })),
        None => None,
    };
    Ok(Cursor::new(seen.parse()?, max_seq, window))
}

/// Whether the leader goes on behind a checkpoint.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Term {
    Continues,
    /// Its successor needs not wait for what is on its way.
    Resigned,
}

/// Moves the checkpoint, and shows that the leader is alive.
///
/// It is committed with a flush of the log, whatever the database's default: once stored, no crash
/// can take back a transaction that the cursor counts as seen, and give its id to another.
pub(crate) async fn advance(
    session: &Session,
    source: &str,
    epoch: i64,
    cursor: &Cursor,
    term: Term,
) -> Result<(), CheckpointError> {
    let window = cursor.window();
    // In one round trip: this is all that a relay with nothing to publish writes.
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
                (&cursor.seen().to_string(), Type::TEXT),
                (&cursor.max_seq(), Type::INT8),
                (&window.map(|window| window.upto.to_string()), Type::TEXT),
                (&window.map(|window| window.done.seq), Type::INT8),
                (&window.and_then(|window| window.done.event_id), Type::UUID),
                (&(term == Term::Resigned), Type::BOOL),
            ],
        )
        .await?;
    if updated == 1 {
        Ok(())
    } else {
        Err(CheckpointError::Superseded)
    }
}

/// Where publishing is to begin once more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ResetTo {
    /// With the oldest row that is there.
    Beginning,
    /// With the row that has this seq.
    Seq(i64),
    /// With the first row that was written at this time, in seconds since 1970, or later.
    UnixSeconds(f64),
}

/// Takes the checkpoint back, and returns the seq behind which the next leader begins: what is asked
/// for, or less if a row before it was not published yet. The row of the checkpoint stays, for what it
/// says of leaders of the past.
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
        return Err(CheckpointError::Timeless);
    }
    adopt_foreign_rows(session, mapping).await?;
    // As if a window were open that reaches from nothing to now, and done up to that seq. What is not
    // visible now is not in the window, and will be found as a straggler. What was not published yet is what the reader's
    // `due` says.
    let outbox = mapping.outbox();
    let sql = format!(
        "with start as (
            select least(
                coalesce(
                    (select greatest($2::bigint, min(seq)) from {outbox}
                     where $2::bigint is not null having min(seq) is not null),
                    (select min(seq) from {outbox} where created_at >= to_timestamp($3::float8)),
                    (select least(max(seq), 9223372036854775806) + 1 from {outbox}), 1),
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
    let system_identifier = system_identifier(session).await?;
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

/// Sees to it that no row has the id of a transaction that is still to come. What it does is committed
/// before the window is opened: new ids are in it. A table that others made is theirs to change.
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
