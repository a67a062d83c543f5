//! Leader election: one leader per source. A session-level advisory lock elects it. The epoch of the checkpoint rejects
//! updates by former leaders, and a lease keeps them from sending.

use std::time::{Duration, Instant};

use crate::{
    config::{DatabaseUrl, SourceConfig},
    postgres::{
        checkpoint::{self, AfterStore, CheckpointError, Claim, ResetTo},
        lease::Lease,
        session::{DatabaseError, Session, connect},
        verification::LeaderIdentity,
        window::Cursor,
    },
};

/// The interval between heartbeats of the leader.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// The `idle_session_timeout` of the leader's session. It releases the lock of a leader whose process is suspended or
/// whose machine is gone.
const SESSION_TIMEOUT: Duration = Duration::from_secs(3);
/// The `lock_timeout`, less than the client's timeout: an abandoned session that still waits for a row lock would keep
/// the leadership without a relay.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// The lease duration: a leader without a successful heartbeat for this time sends nothing until the next one. A longer
/// lease lengthens a failover; with a shorter one a short database stall interrupts publishing.
const SEND_LEASE: Duration = Duration::from_millis(600);
/// The key of a source's advisory lock; `$1` is the source.
const LOCK_KEY: &str = "hashtextextended('outbox-relay ' || $1, 0)";
/// The time that a reset waits for Postgres to end the session of a relay that was just stopped.
const SESSION_END_TIMEOUT: Duration = Duration::from_secs(1);
/// The timeout of each statement of a reset.
const RESET_TIMEOUT: Duration = Duration::from_hours(1);

/// The leadership of a source. It ends with the session that holds the lock.
#[derive(Debug)]
pub(crate) struct Leadership {
    session: Session,
    identity: LeaderIdentity,
    lease: Lease,
}

/// The result of a won election.
#[derive(Debug)]
pub(crate) struct Election {
    pub(crate) leadership: Leadership,
    pub(crate) cursor: Cursor,
    /// The transactional id of the source's producer.
    pub(crate) producer_name: String,
    /// The time for which records of the previous leader can still arrive. Wait for it unless the sink fences the
    /// previous leader.
    pub(crate) wait: Duration,
    /// True if there are parked events, or dead letters that are not in their topic yet.
    pub(crate) has_rejected_events: bool,
}

/// A session that can become the leader of a source.
#[derive(Debug)]
pub(crate) struct Candidate {
    session: Session,
    source: String,
}

impl Candidate {
    pub(crate) async fn new(
        database_url: &DatabaseUrl,
        source: &str,
    ) -> Result<Self, DatabaseError> {
        let session = connect(database_url, "outbox-relay leader").await?;
        let settings = [
            (
                "idle_session_timeout",
                SESSION_TIMEOUT.as_millis().to_string(),
            ),
            ("lock_timeout", LOCK_TIMEOUT.as_millis().to_string()),
            ("enable_seqscan", "off".to_owned()),
        ];
        session.apply_settings(&settings).await?;
        Ok(Self {
            session,
            source: source.to_owned(),
        })
    }

    /// Tries to take the lock. Returns false if another session holds it.
    pub(crate) async fn try_lock(&self) -> Result<bool, DatabaseError> {
        let sql = format!("select pg_try_advisory_lock({LOCK_KEY})");
        Ok(self.session.query_one(&sql, &[&self.source]).await?.get(0))
    }

    /// Becomes the leader. The caller must hold the lock. `delivery_timeout` is the time for which a record can be in
    /// flight.
    pub(crate) async fn lead(
        self,
        config: &SourceConfig,
        delivery_timeout: Duration,
    ) -> Result<Election, CheckpointError> {
        let Self { session, source } = self;
        let Claim {
            epoch,
            cursor,
            instance,
            predecessor_age,
            pid,
            database_oid,
            has_rejected_events,
        } = checkpoint::claim(&session, config).await?;
        let wait = predecessor_age.map_or(Duration::ZERO, |age| {
            (SEND_LEASE + delivery_timeout).saturating_sub(age)
        });
        let producer_name = producer_name(&source, &instance, database_oid);
        let leadership = Leadership {
            session,
            identity: LeaderIdentity {
                source,
                epoch,
                instance,
                pid,
            },
            lease: Lease::new(SEND_LEASE),
        };
        Ok(Election {
            leadership,
            cursor,
            producer_name,
            wait,
            has_rejected_events,
        })
    }
}

impl Leadership {
    pub(crate) fn epoch(&self) -> i64 {
        self.identity.epoch
    }

    pub(crate) fn source(&self) -> &str {
        &self.identity.source
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn identity(&self) -> &LeaderIdentity {
        &self.identity
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Stores the checkpoint. This is also the heartbeat.
    pub(crate) async fn advance(&self, cursor: &Cursor) -> Result<(), CheckpointError> {
        // Taken before the statement, which may take effect immediately.
        let sent_at = Instant::now();
        self.store(cursor, AfterStore::Continue).await?;
        self.lease.renew(sent_at);
        Ok(())
    }

    /// Sends heartbeats with an unchanged checkpoint. Returns only the error that ends the leadership.
    pub(crate) async fn send_heartbeats(&self, cursor: &Cursor) -> CheckpointError {
        loop {
            tokio::time::sleep(HEARTBEAT_INTERVAL).await;
            if let Err(err) = self.advance(cursor).await {
                return err;
            }
        }
    }

    /// Resigns. No record may be in flight: the successor does not wait.
    pub(crate) async fn resign(&self, cursor: &Cursor) -> Result<(), CheckpointError> {
        self.store(cursor, AfterStore::Resign).await
    }

    async fn store(&self, cursor: &Cursor, next: AfterStore) -> Result<(), CheckpointError> {
        checkpoint::advance(&self.session, self.source(), self.epoch(), cursor, next).await
    }
}

/// Moves the checkpoint of a source back. Fails while a relay leads the source.
pub(crate) async fn reset(source: &SourceConfig, to: ResetTo) -> Result<i64, CheckpointError> {
    let mut candidate = Candidate::new(&source.database_url, &source.name).await?;
    // Postgres may not have ended the session of a relay that was just stopped.
    let deadline = Instant::now() + SESSION_END_TIMEOUT;
    while !candidate.try_lock().await? {
        if Instant::now() > deadline {
            return Err(CheckpointError::HasLeader);
        }
        tokio::time::sleep(SESSION_END_TIMEOUT / 20).await;
    }
    // Reads or updates all rows, which can take long.
    let session = &mut candidate.session;
    session.set_timeout(RESET_TIMEOUT).await?;
    session.apply_settings(&[("lock_timeout", "0")]).await?;
    checkpoint::reset(session, &source.name, &source.mapping, to).await
}

/// Describes the session that holds the source's lock, if there is one.
pub(crate) async fn find_lock_holder(
    session: &Session,
    source: &str,
) -> Result<Option<String>, DatabaseError> {
    let sql = format!(
        "select activity.pid, host(activity.client_addr),
             to_char(activity.backend_start at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')
         from pg_locks as lock join pg_stat_activity as activity using (pid)
         where {}
         limit 1",
        lock_condition()
    );
    let Some(row) = session.query_opt(&sql, &[&source]).await? else {
        return Ok(None);
    };
    let pid: i32 = row.get(0);
    let from: Option<String> = row.get(1);
    let since: Option<String> = row.get(2);
    let from = from.map_or_else(String::new, |from| format!(" from {from}"));
    let since = since.map_or_else(String::new, |since| {
        format!(", connected since {since} UTC")
    });
    Ok(Some(format!("Postgres session {pid}{from}{since}")))
}

/// Returns the SQL condition for the leader's row `lock` of `pg_locks`, which splits the key into two halves.
pub(super) fn lock_condition() -> String {
    format!(
        "lock.locktype = 'advisory' and lock.granted and lock.objsubid = 1
         and lock.database = (select oid from pg_database where datname = current_database())
         and (lock.classid::bigint << 32 | lock.objid::bigint) = {LOCK_KEY}"
    )
}

/// Returns the transactional id of a source's producer. The instance distinguishes sources of the same name in different
/// databases, and the database's oid distinguishes a database from its copy in the same cluster.
pub(crate) fn producer_name(source: &str, instance: &str, database_oid: u32) -> String {
    format!("outbox-relay.{source}.{instance}.{database_oid}")
}
