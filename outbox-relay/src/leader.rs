//! One leader a source: a session-level advisory lock elects it, an epoch on the checkpoint makes
//! sure that a leader of the past changes nothing, and a lease keeps it from sending.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::{Client, NoTls};

use crate::{
    checkpoint::{self, CheckpointError, Claim},
    window::Cursor,
};

/// How often the leader shows that it is alive.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// A leader that could not show this for so long sends nothing until it has. Longer makes a
/// failover longer, shorter stops shipping at every hiccup of the database.
const SEND_LEASE: Duration = Duration::from_millis(600);
/// How long the database may take for a statement of ours before it counts as gone.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The right to ship a source. It ends with the session that holds the lock.
#[derive(Debug)]
pub(crate) struct Leadership {
    client: Client,
    source: String,
    epoch: i64,
    last_heartbeat: Mutex<Instant>,
}

/// What a new leader finds.
#[derive(Debug)]
pub(crate) struct Election {
    pub(crate) leadership: Leadership,
    pub(crate) cursor: Cursor,
    /// A record of the leader before can still arrive for so long; ship nothing until then.
    pub(crate) wait: Duration,
}

/// A session that wants to lead a source.
#[derive(Debug)]
pub(crate) struct Candidate {
    client: Client,
    source: String,
}

impl Candidate {
    pub(crate) async fn new(
        database_url: &SecretString,
        source: &str,
    ) -> Result<Self, tokio_postgres::Error> {
        let client = connect(database_url, "outbox-relay leader").await?;
        Ok(Self {
            client,
            source: source.to_owned(),
        })
    }

    /// Takes the lock, unless another session has it.
    pub(crate) async fn try_lock(&self) -> Result<bool, tokio_postgres::Error> {
        let sql = "select pg_try_advisory_lock(hashtextextended('outbox-relay ' || $1, 0))";
        Ok(self.client.query_one(sql, &[&self.source]).await?.get(0))
    }

    /// Becomes the leader, with the lock in hand. `delivery_timeout` is how long a record can be on
    /// its way.
    pub(crate) async fn lead(
        self,
        delivery_timeout: Duration,
    ) -> Result<Election, CheckpointError> {
        let Self { client, source } = self;
        let Claim {
            epoch,
            cursor,
            predecessor_age,
        } = checkpoint::claim(&client, &source).await?;
        let wait = predecessor_age.map_or(Duration::ZERO, |age| {
            (SEND_LEASE + delivery_timeout).saturating_sub(age)
        });
        let last_heartbeat = Mutex::new(Instant::now());
        let leadership = Leadership {
            client,
            source,
            epoch,
            last_heartbeat,
        };
        Ok(Election {
            leadership,
            cursor,
            wait,
        })
    }
}

impl Leadership {
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Moves the checkpoint, which also shows that the leader is alive.
    pub(crate) async fn advance(&self, cursor: &Cursor) -> Result<(), CheckpointError> {
        // The time before the statement: it may take effect the moment it is sent.
        let sent_at = Instant::now();
        checkpoint::advance(&self.client, &self.source, self.epoch, cursor, false).await?;
        *self
            .last_heartbeat
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = sent_at;
        Ok(())
    }

    /// Gives the source up, with nothing left on its way.
    pub(crate) async fn resign(self, cursor: &Cursor) -> Result<(), CheckpointError> {
        checkpoint::advance(&self.client, &self.source, self.epoch, cursor, true).await
    }

    /// Waits until it is certain that no other leader ships yet.
    pub(crate) async fn wait_for_lease(&self) {
        let age = || {
            self.last_heartbeat
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .elapsed()
        };
        while age() > SEND_LEASE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Makes the next leader begin with the oldest row; refuses while there is a leader.
pub(crate) async fn reset(
    database_url: &SecretString,
    source: &str,
) -> Result<bool, CheckpointError> {
    let candidate = Candidate::new(database_url, source).await?;
    if !candidate.try_lock().await? {
        return Err(CheckpointError::Superseded);
    }
    checkpoint::forget(&candidate.client, source).await
}

/// Opens a session of our own, which notices within seconds that the other side is gone.
pub(crate) async fn connect(
    database_url: &SecretString,
    application_name: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config: tokio_postgres::Config = database_url.expose_secret().parse()?;
    config
        .application_name(application_name)
        .connect_timeout(Duration::from_secs(5))
        .tcp_user_timeout(STATEMENT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(2))
        .keepalives_retries(3);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to Postgres ended");
        }
    });
    client
        .batch_execute(&format!(
            "set statement_timeout = {}; set synchronous_commit = on",
            STATEMENT_TIMEOUT.as_millis(),
        ))
        .await?;
    Ok(client)
}
