//! Verifies the database of a session: before the session reads or truncates the outbox, and repeatedly while it reads.

use tokio_postgres::{Error, Row, types::ToSql};

use crate::{
    config::SourceConfig,
    postgres::{
        leader,
        session::{self, DatabaseError, Session},
    },
};

/// The leader of a source, as other sessions see it.
#[derive(Clone, Debug)]
pub(crate) struct LeaderIdentity {
    pub(crate) source: String,
    pub(crate) epoch: i64,
    pub(crate) instance: String,
    /// The process id of the session that holds the source's lock.
    pub(crate) pid: i32,
}

/// The result of a verification.
#[derive(Clone, Debug)]
pub(crate) struct Verification {
    /// The session sees the leader's lock and checkpoint. It does not if the URL or the DNS record has changed since the
    /// election.
    is_same_database: bool,
    /// The row whose transaction id is farthest ahead of this cluster's, if any. It comes from another cluster, by replication or
    /// from a dump. It would stay invisible until this cluster reaches that id, and then come after newer events.
    pub(crate) future_row: Option<FutureRow>,
    /// The database's clock, in milliseconds since 1970.
    pub(crate) database_ms: i64,
}

/// A row whose transaction id is ahead of this cluster's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FutureRow {
    /// The seq of the row.
    pub(crate) seq: String,
    /// The transaction id of the row.
    pub(crate) xid: String,
    /// The next transaction id of this cluster.
    pub(crate) next_xid: String,
}

/// Returns the statement of a verification. Its parameters are those of [`LeaderIdentity::params`].
pub(crate) fn verification_sql(outbox: &str) -> String {
    format!(
        "select exists (select from pg_locks as lock where pid = $4 and {is_leaders_lock})
             and exists (select from relay_checkpoints
                 where source = $1 and epoch = $2 and instance::text = $3),
             coalesce(future.seq::text, 'null'), future.xid::text, pg_snapshot_xmax(pg_current_snapshot())::text,
             (date_part('epoch', clock_timestamp()) * 1000)::bigint
         from (select) as always left join lateral (
             select seq, xid from {outbox}
             where xid >= pg_snapshot_xmax(pg_current_snapshot()) order by xid desc limit 1
         ) as future on true",
        is_leaders_lock = leader::lock_condition()
    )
}

/// Opens another session than the leader's, and fails unless it is connected to the same database.
pub(crate) async fn connect_to_leaders_database(
    config: &SourceConfig,
    identity: &LeaderIdentity,
    application_name: &'static str,
) -> Result<Session, DatabaseError> {
    let session = session::connect(&config.database_url, application_name).await?;
    let sql = verification_sql(config.mapping.outbox());
    let row = session.query_one(&sql, &identity.params()).await?;
    Verification::decode(&row)?.ensure_same_database()?;
    Ok(session)
}

impl LeaderIdentity {
    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 4] {
        [&self.source, &self.epoch, &self.instance, &self.pid]
    }
}

impl Verification {
    pub(crate) fn decode(row: &Row) -> Result<Self, Error> {
        let xid: Option<String> = row.try_get(2)?;
        let (seq, next_xid) = (row.try_get(1)?, row.try_get(3)?);
        Ok(Self {
            is_same_database: row.try_get(0)?,
            database_ms: row.try_get(4)?,
            future_row: xid.map(|xid| FutureRow { seq, xid, next_xid }),
        })
    }

    /// Fails unless the session is connected to the leader's database.
    pub(crate) fn ensure_same_database(&self) -> Result<(), DatabaseError> {
        if self.is_same_database {
            return Ok(());
        }
        Err(DatabaseError::Moved)
    }
}
