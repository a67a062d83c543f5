//! One leader a source: a session-level advisory lock elects it, an epoch on the checkpoint makes
//! sure that a leader of the past changes nothing, and a lease keeps it from sending.

use std::time::{Duration, Instant};

use tokio_postgres::types::ToSql;

use crate::{
    config::{DatabaseUrl, Mapping, SourceConfig},
    postgres::{
        checkpoint::{self, CheckpointError, Claim, ResetTo, Term},
        lease::Lease,
        session::{DatabaseError, Session, connect},
        window::Cursor,
    },
};

/// How often the leader shows that it is alive.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// A leader of whom the database hears nothing for so long loses the lock: its process is suspended,
/// or its machine has vanished without a word.
const SILENCE_LIMIT: Duration = Duration::from_secs(3);
/// A statement that waits for somebody's lock ends before it is given up here: its session would go on
/// waiting, and would lead without a relay.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// A leader that could not show this for so long sends nothing until it has. Longer makes a
/// failover longer, shorter stops publishing at every hiccup of the database.
const SEND_LEASE: Duration = Duration::from_millis(600);
/// The number of a source's lock; `$1` is its name.
const LOCK: &str = "hashtextextended('outbox-relay ' || $1, 0)";
/// How long Postgres may take to end the session of a relay that has gone.
const PARTING: Duration = Duration::from_secs(1);
/// How long a statement of a reset may take.
const RESET_LIMIT: Duration = Duration::from_hours(1);

/// The right to publish a source. It ends with the session that holds the lock.
#[derive(Debug)]
pub(crate) struct Leadership {
    session: Session,
    source: String,
    epoch: i64,
    instance: String,
    /// The session's number in the database.
    pid: i32,
    lease: Lease,
}

/// What a new leader finds.
#[derive(Debug)]
pub(crate) struct Election {
    pub(crate) leadership: Leadership,
    pub(crate) cursor: Cursor,
    /// The source's name towards the brokers.
    pub(crate) producer_name: String,
    /// A record of the leader before can still arrive for so long. Without a sink that fences it
    /// off, publish nothing until then.
    pub(crate) wait: Duration,
}

/// A session that wants to lead a source.
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
        let sql = format!(
            "set idle_session_timeout = {}; set lock_timeout = {}; set enable_seqscan = off",
            SILENCE_LIMIT.as_millis(),
            LOCK_LIMIT.as_millis()
        );
        session.batch_execute(&sql).await?;
        Ok(Self {
            session,
            source: source.to_owned(),
        })
    }

    /// Takes the lock, unless another session has it.
    pub(crate) async fn try_lock(&self) -> Result<bool, DatabaseError> {
        let sql = format!("select pg_try_advisory_lock({LOCK})");
        Ok(self.session.query_one(&sql, &[&self.source]).await?.get(0))
    }

    /// Becomes the leader, with the lock in hand. `delivery_timeout` is how long a record can be on
    /// its way.
    pub(crate) async fn lead(
        self,
        mapping: &Mapping,
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
        } = checkpoint::claim(&session, &source, mapping).await?;
        let wait = predecessor_age.map_or(Duration::ZERO, |age| {
            (SEND_LEASE + delivery_timeout).saturating_sub(age)
        });
        let producer_name = producer_name(&source, &instance, database_oid);
        let leadership = Leadership {
            session,
            source,
            epoch,
            instance,
            pid,
            lease: Lease::new(SEND_LEASE),
        };
        Ok(Election {
            leadership,
            cursor,
            producer_name,
            wait,
        })
    }
}

impl Leadership {
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The session that holds the lock.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Makes sure that this session is in the database that is led: it sees the leader hold the lock. The
    /// URL, or what its host's name stands for, may have changed since that was opened.
    pub(crate) async fn vouch_for(&self, session: &Session) -> Result<(), DatabaseError> {
        let sql = format!(
            "select exists (select from pg_locks as lock where pid = $2 and {})
                 and exists (select from relay_checkpoints
                     where source = $1 and epoch = $3 and instance::text = $4)",
            holds_lock()
        );
        let (source, pid, epoch) = (&self.source, &self.pid, &self.epoch);
        let params: [&(dyn ToSql + Sync); 4] = [source, pid, epoch, &self.instance];
        if session.query_one(&sql, &params).await?.get(0) {
            return Ok(());
        }
        let elsewhere =
            "it leads to another database than when this relay became the leader of the source";
        Err(DatabaseError::Url(elsewhere.to_owned()))
    }

    /// The time for which this is the only leader.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Moves the checkpoint, which also shows that the leader is alive.
    pub(crate) async fn advance(&self, cursor: &Cursor) -> Result<(), CheckpointError> {
        // The time before the statement: it may take effect the moment it is sent.
        let sent_at = Instant::now();
        self.store(cursor, Term::Continues).await?;
        self.lease.renew(sent_at);
        Ok(())
    }

    /// Stays the leader at this place. Ends only with the reason why it can't.
    pub(crate) async fn stay(&self, cursor: &Cursor) -> CheckpointError {
        loop {
            tokio::time::sleep(HEARTBEAT_INTERVAL).await;
            if let Err(err) = self.advance(cursor).await {
                return err;
            }
        }
    }

    /// Gives the source up, with nothing left on its way.
    pub(crate) async fn resign(&self, cursor: &Cursor) -> Result<(), CheckpointError> {
        self.store(cursor, Term::Resigned).await
    }

    async fn store(&self, cursor: &Cursor, term: Term) -> Result<(), CheckpointError> {
        checkpoint::advance(&self.session, &self.source, self.epoch, cursor, term).await
    }
}

/// Makes the next leader begin further back; rejects while there is a leader.
pub(crate) async fn reset(source: &SourceConfig, to: ResetTo) -> Result<i64, CheckpointError> {
    let mut candidate = Candidate::new(&source.database_url, &source.name).await?;
    // A relay that has just ended is not gone before Postgres has noticed.
    let deadline = Instant::now() + PARTING;
    while !candidate.try_lock().await? {
        if Instant::now() > deadline {
            return Err(CheckpointError::Led);
        }
        tokio::time::sleep(PARTING / 20).await;
    }
    // It looks at all rows, or changes them: an operator can wait.
    let session = &mut candidate.session;
    session.set_limit(RESET_LIMIT).await?;
    session.batch_execute("set lock_timeout = 0").await?;
    checkpoint::reset(session, &source.name, &source.mapping, to).await
}

/// Who holds the source's lock, if anybody does.
pub(crate) async fn holder(
    session: &Session,
    source: &str,
) -> Result<Option<String>, DatabaseError> {
    let sql = format!(
        "select activity.pid, host(activity.client_addr),
             to_char(activity.backend_start at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')
         from pg_locks as lock join pg_stat_activity as activity using (pid)
         where {}
         limit 1",
        holds_lock()
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
    Ok(Some(format!("session {pid} of Postgres{from}{since}")))
}

/// Whether a row `lock` of `pg_locks` is that of a source's leader. Its number is listed in two halves.
fn holds_lock() -> String {
    format!(
        "lock.locktype = 'advisory' and lock.granted and lock.objsubid = 1
         and lock.database = (select oid from pg_database where datname = current_database())
         and (lock.classid::bigint << 32 | lock.objid::bigint) = {LOCK}"
    )
}

/// A source's name towards the brokers. The instance tells it from those of the same name in other databases, and
/// the database's oid from that in a copy of its own in the same cluster.
pub(crate) fn producer_name(source: &str, instance: &str, database_oid: u32) -> String {
    format!("outbox-relay.{source}.{instance}.{database_oid}")
}
