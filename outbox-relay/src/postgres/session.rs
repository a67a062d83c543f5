//! Sessions with Postgres: every one of the relay's is opened here.

mod encryption;

use std::{error::Error, time::Duration};

use tokio_postgres::{
    Client, Row,
    error::SqlState,
    types::{ToSql, Type},
};

use self::encryption::Encryption;
use crate::{
    config::DatabaseUrl,
    hints,
    tls::{self, Settings},
};

/// How long the database may take for a statement of ours before it counts as gone.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long we wait for an answer that takes a moment: a server can accept and then stall.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const SETTINGS: Settings = Settings {
    ca: "sslrootcert in the database's URL",
    address: "the host in the database's URL",
    identity: "sslcert and sslkey in the database's URL",
};

/// Why there is no answer from the database.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It can't be reached, or rejects.
    #[error("{}", what_failed(.0))]
    Failed(#[from] tokio_postgres::Error),
    /// The same, and it is known what to do about it.
    #[error("can't reach the database; {way_out}")]
    Rejected {
        /// What to do.
        way_out: String,
        /// What it says.
        source: tokio_postgres::Error,
    },
    /// Its URL, or a file of its URL, can't be used.
    #[error("the database's URL: {0}")]
    Url(String),
    /// It says nothing.
    #[error("the database doesn't answer within {0:?}")]
    Silent(Duration),
}

impl DatabaseError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &str {
        match self {
            Self::Failed(err) => hints::for_postgres(err),
            Self::Rejected { way_out, .. } => way_out,
            Self::Url(_) => "mend database_url",
            Self::Silent(_) => hints::SILENT_POSTGRES,
        }
    }

    /// What Postgres calls the error, if it is one of Postgres' own.
    pub(crate) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Failed(source) | Self::Rejected { source, .. } => source.code(),
            Self::Url(_) | Self::Silent(_) => None,
        }
    }
}

/// A session in which no call waits longer than its limit for an answer. The session is of no use after that: what
/// Postgres still does for the call is unknown.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    limit: Duration,
}

/// Parameters of a statement.
type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Session {
    /// Lets each call wait for so long, and Postgres work on it a moment less, from now on.
    pub(crate) async fn set_limit(&mut self, limit: Duration) -> Result<(), DatabaseError> {
        let sql = format!(
            "set statement_timeout = {}",
            limit.saturating_sub(Duration::from_secs(1)).as_millis()
        );
        self.batch_execute(&sql).await?;
        self.limit = limit;
        Ok(())
    }

    pub(crate) async fn query(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, DatabaseError> {
        self.answer(self.client.query(sql, params)).await
    }

    pub(crate) async fn query_one(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Row, DatabaseError> {
        self.answer(self.client.query_one(sql, params)).await
    }

    pub(crate) async fn query_opt(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, DatabaseError> {
        self.answer(self.client.query_opt(sql, params)).await
    }

    pub(crate) async fn execute(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<u64, DatabaseError> {
        self.answer(self.client.execute(sql, params)).await
    }

    /// The same in one round trip, because nobody has to ask for the types of the parameters.
    pub(crate) async fn execute_typed(
        &self,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<u64, DatabaseError> {
        self.answer(self.client.execute_typed(sql, params)).await
    }

    pub(crate) async fn batch_execute(&self, sql: &str) -> Result<(), DatabaseError> {
        self.answer(self.client.batch_execute(sql)).await
    }

    /// Whether the connection is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The session for whoever limits its waiting by itself.
    pub(crate) fn into_client(self) -> Client {
        self.client
    }

    async fn answer<T>(
        &self,
        asking: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DatabaseError> {
        match tokio::time::timeout(self.limit, asking).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(DatabaseError::Silent(self.limit)),
        }
    }
}

/// Whether there is a session at all, which the database's own words don't tell.
fn what_failed(err: &tokio_postgres::Error) -> &'static str {
    // Classes: connection, authorization, no such database; too many connections; a server that ends or begins.
    const NO_SESSION: [&str; 5] = ["08", "28", "3D", "53300", "57P"];
    let code = err.code().map_or("08", SqlState::code);
    if NO_SESSION.iter().any(|class| code.starts_with(class)) {
        "can't reach the database"
    } else {
        "the database rejects what it is asked"
    }
}

/// Opens a session of our own, which notices within seconds that the other side is gone. The URL and
/// the files that it names are read anew.
pub(crate) async fn connect(
    database_url: &DatabaseUrl,
    application_name: &str,
) -> Result<Session, DatabaseError> {
    // On the heap, because a handshake needs more room than everything that waits for it.
    let opening = Box::pin(open(database_url, application_name));
    let opened = tokio::time::timeout(ANSWER_TIMEOUT, opening).await;
    let client = opened.unwrap_or(Err(DatabaseError::Silent(ANSWER_TIMEOUT)))?;
    Ok(Session {
        client,
        limit: ANSWER_TIMEOUT,
    })
}

async fn open(database_url: &DatabaseUrl, application_name: &str) -> Result<Client, DatabaseError> {
    let mut target = database_url.read().map_err(DatabaseError::Url)?;
    let tls = target.files.load(target.verification);
    let tls = tls.map_err(|err| DatabaseError::Url(err.to_string()))?;
    target
        .config
        .application_name(application_name)
        .connect_timeout(ANSWER_TIMEOUT)
        .tcp_user_timeout(STATEMENT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(5))
        .keepalives_interval(Duration::from_secs(2))
        .keepalives_retries(3);
    let connecting = target.config.connect(Encryption::new(tls));
    let (client, connection) = connecting.await.map_err(explained)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to Postgres ended");
        }
    });
    // Whatever the role's or the database's defaults are.
    let settings = format!(
        "set statement_timeout = {};
         set synchronous_commit = on;
         set default_transaction_read_only = off;
         set default_transaction_isolation = 'read committed';
         set row_security = off;
         set quote_all_identifiers = off",
        STATEMENT_TIMEOUT.as_millis(),
    );
    client.batch_execute(&settings).await.map_err(explained)?;
    Ok(client)
}

fn explained(source: tokio_postgres::Error) -> DatabaseError {
    match way_out(&source) {
        Some(way_out) => DatabaseError::Rejected { way_out, source },
        None => DatabaseError::Failed(source),
    }
}

fn way_out(err: &tokio_postgres::Error) -> Option<String> {
    if let Some(rejection) = err.as_db_error() {
        if *rejection.code() != SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
            return None;
        }
        let message = rejection.message();
        let is_about = |words| message.contains(words);
        if is_about("no encryption") {
            return Some("set sslmode=verify-full in its URL".into());
        }
        let is_uncertified = is_about("valid client certificate");
        return is_uncertified.then(|| format!("set {}", SETTINGS.identity));
    }
    let mut cause: &(dyn Error + 'static) = err;
    while let Some(next) = cause.source() {
        cause = next;
        if let Some(way_out) = tls::hint_for(cause, &SETTINGS) {
            return Some(way_out);
        }
    }
    let is_plain = cause.to_string() == "server does not support TLS";
    is_plain.then(|| "set ssl = on in its configuration, or another sslmode in its URL".into())
}
