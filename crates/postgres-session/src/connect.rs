use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use tokio_postgres::{
    Client, Config, Connection, SimpleQueryMessage, Socket,
    config::{Host, SslMode, SslNegotiation},
    error::SqlState,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    pooler,
    transport::{Connector, TlsUnsupported, Transport},
    url::{DatabaseUrl, Encryption, Target},
};

/// The time after which an unacknowledged packet closes the connection.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent peer of an idle connection is detected after 5 + 3 * 2 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_RETRIES: u32 = 3;

/// The settings on which the SQL of this project relies. They override the defaults of the role and of the database.
///
/// - A stricter isolation turns concurrent updates into errors.
/// - With `row_security` a query would return some of the rows; without it, it fails.
/// - The others change the meaning of a statement.
const PINNED_SETTINGS: &str = "
    set default_transaction_isolation = 'read committed';
    set default_transaction_deferrable = off;
    set synchronous_commit = on;
    set row_security = off;
    set standard_conforming_strings = on;
    set transform_null_equals = off;
    set quote_all_identifiers = off";

pub(crate) const TLS_SETTINGS: tls::Settings = tls::Settings {
    ca: "sslrootcert in the database's URL",
    address: "the host in the database's URL",
    identity: "sslcert and sslkey in the database's URL",
};

/// The options of a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The `application_name`, which `pg_stat_activity` shows.
    pub application_name: &'static str,
    /// The limit on opening the session, with TLS, authentication and settings.
    pub connect_timeout: Duration,
    /// The `statement_timeout`. Zero: no limit.
    pub statement_timeout: Duration,
    /// The `lock_timeout`. Zero: no limit.
    pub lock_timeout: Duration,
    /// The `idle_in_transaction_session_timeout`. Zero: no limit.
    pub idle_in_transaction_timeout: Duration,
    /// Overrides `default_transaction_read_only`, with which a DBA freezes a database, for example before a switchover.
    pub forces_writes: bool,
    /// The longest wait for the next byte of a response; then the session ends. Longer than `statement_timeout`. `None`: the
    /// caller limits its waits.
    pub response_timeout: Option<Duration>,
}

impl SessionOptions {
    /// Returns the limits of a service's calls, of its background work, and of its commands.
    pub const fn for_service(application_name: &'static str) -> Self {
        Self {
            application_name,
            connect_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(15),
            forces_writes: false,
            // Later than the server's own limit, whose error says more.
            response_timeout: Some(Duration::from_secs(12)),
        }
    }
}

/// A session that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL, or a file that it names, is unusable.
    #[error("invalid database URL: {0}")]
    Url(String),
    /// The connection failed, or Postgres rejected it.
    #[error("failed to connect to {address}: {}", cause_of(source))]
    Failed {
        /// `host:port`.
        address: String,
        /// The cause.
        source: tokio_postgres::Error,
        /// A hint about TLS or authentication.
        hint: Option<String>,
    },
    /// diesel's own settings were rejected.
    #[error("failed to prepare a session on {address}")]
    Setup {
        /// `host:port`.
        address: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Postgres did not respond in time.
    #[error("failed to connect to {address}: no response within {timeout:?}")]
    Timeout {
        /// `host:port`.
        address: String,
        /// The limit.
        timeout: Duration,
    },
    /// A pooler gives each transaction to another session.
    #[error(
        "{address} is a connection pooler in transaction mode, which loses the settings, locks and prepared statements of a \
         session. Connect to Postgres directly, or to a pool in session mode (PgBouncer: pool_mode = session)."
    )]
    TransactionPooler {
        /// `host:port`.
        address: String,
    },
}

impl ConnectError {
    /// Returns advice for the operator, if there is more than the message says.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Failed { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }

    /// Returns the SQLSTATE if Postgres reported the error.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Failed { source, .. } => source.code(),
            _ => None,
        }
    }
}

/// Returns the cause of an error without Postgres' DETAIL, which can contain the values of a row.
fn cause_of(err: &tokio_postgres::Error) -> String {
    err.as_db_error().map_or_else(
        || cli::chain(err),
        |err| format!("{}: {}", err.severity(), err.message()),
    )
}

/// Opens a session, and reads the URL and the files that it names again.
///
/// # Errors
/// If the URL is unusable, the server can't be reached or does not accept the session, or a pooler in transaction mode is in
/// front of it.
pub async fn connect(url: &DatabaseUrl, options: &SessionOptions) -> Result<Client, ConnectError> {
    // On the heap, because the future of a handshake is larger than those that await it.
    let opening = Box::pin(async {
        let Opened {
            client, connection, ..
        } = prepare(url, options).await?;
        tokio::spawn(async move {
            if let Err(err) = connection.await {
                let error = cause_of(&err);
                tracing::debug!(error, "Postgres connection failed");
            }
        });
        Ok(client)
    });
    with_timeout(url, options, opening).await
}

/// Opens a connection and applies the settings.
pub(crate) async fn prepare(
    url: &DatabaseUrl,
    options: &SessionOptions,
) -> Result<Opened, ConnectError> {
    let mut opened = open(url, options).await?;
    let process_id = opened.query_i32(&settings(options)).await?;
    opened
        .reject_transaction_pooler(url, options, process_id)
        .await?;
    Ok(opened)
}

/// Limits the opening of a session.
pub(crate) async fn with_timeout<T>(
    url: &DatabaseUrl,
    options: &SessionOptions,
    opening: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let timeout = options.connect_timeout;
    tokio::time::timeout(timeout, opening)
        .await
        .unwrap_or_else(|_| {
            let target = url.read().map_err(ConnectError::Url)?;
            let address = address_of(&target.config);
            Err(ConnectError::Timeout { address, timeout })
        })
}

/// An open connection. No task drives it yet.
pub(crate) struct Opened {
    pub(crate) client: Client,
    pub(crate) connection: Connection<Socket, Transport>,
    pub(crate) server: Server,
}

impl Opened {
    /// Executes statements and returns the number in the first row of the result.
    pub(crate) async fn query_i32(&mut self, sql: &str) -> Result<Option<i32>, ConnectError> {
        let Self {
            client,
            connection,
            server,
        } = self;
        let querying = client.simple_query(sql);
        let messages = tokio::select! {
            messages = querying => messages.map_err(|err| server.error(err))?,
            ended = connection => match ended {
                Ok(()) => return Ok(None),
                Err(err) => return Err(server.error(err)),
            },
        };
        Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        }))
    }

    /// Rejects a pooler in transaction mode. `process_id` is that of the server process.
    async fn reject_transaction_pooler(
        &mut self,
        url: &DatabaseUrl,
        options: &SessionOptions,
        process_id: Option<i32>,
    ) -> Result<(), ConnectError> {
        let sent = self.server.process_id.load(Ordering::Acquire);
        if sent == 0 || process_id == Some(sent) || url.has_verified_pooler() {
            return Ok(());
        }
        if pooler::shares_processes(self, url, options).await? {
            let address = self.server.address.clone();
            return Err(ConnectError::TransactionPooler { address });
        }
        url.set_verified_pooler();
        Ok(())
    }
}

/// The other end of a connection.
pub(crate) struct Server {
    pub(crate) address: String,
    encryption: Encryption,
    has_identity: bool,
    /// The process id that the server sent for cancellation; 0 if it is unknown.
    process_id: Arc<AtomicI32>,
}

/// Opens a connection. As in libpq, `sslmode=prefer` falls back to plaintext if TLS or `pg_hba.conf` does not permit TLS.
pub(crate) async fn open(
    url: &DatabaseUrl,
    options: &SessionOptions,
) -> Result<Opened, ConnectError> {
    let target = url.read().map_err(ConnectError::Url)?;
    let mut attempt = Attempt::new(&target, options)?;
    let err = match attempt.open().await {
        Ok(opened) => return Ok(opened),
        Err(err) => err,
    };
    let is_about_tls = attempt.connector.has_tls_failed()
        || err.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    if target.encryption != Encryption::Prefer || !is_about_tls {
        return Err(err);
    }
    attempt.connector.encryption = Encryption::Disable;
    attempt.open().await.map_err(|_| err)
}

/// A connection that is opened.
struct Attempt {
    config: Config,
    connector: Connector,
    address: String,
    has_identity: bool,
}

impl Attempt {
    fn new(target: &Target, options: &SessionOptions) -> Result<Self, ConnectError> {
        let tls = target.files.load(target.verification);
        let tls = tls.map_err(|err| ConnectError::Url(err.to_string()))?;
        let mut config = target.config.clone();
        let hosts = u32::try_from(config.get_hosts().len()).unwrap_or(u32::MAX);
        // Each of several hosts gets its share, so that a silent one does not use up the limit.
        let timeout = options.connect_timeout / hosts.max(1);
        config
            .application_name(options.application_name)
            .connect_timeout(timeout)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES);
        if has_unix_socket(&config) {
            config.ssl_mode(SslMode::Disable);
        } else {
            // The transport negotiates.
            config
                .ssl_mode(SslMode::Require)
                .ssl_negotiation(SslNegotiation::Direct);
        }
        let connector = Connector {
            tls: MakeRustlsConnect::new(tls),
            encryption: target.encryption,
            startup_timeout: timeout,
            response_timeout: options.response_timeout,
            process_id: Arc::default(),
            tls_failed: Arc::default(),
        };
        Ok(Self {
            address: address_of(&config),
            config,
            connector,
            has_identity: target.files.identity.is_some(),
        })
    }

    async fn open(&self) -> Result<Opened, ConnectError> {
        let server = Server {
            address: self.address.clone(),
            encryption: self.connector.encryption,
            has_identity: self.has_identity,
            process_id: Arc::clone(&self.connector.process_id),
        };
        let connecting = self.config.connect(self.connector.clone());
        let (client, connection) = connecting.await.map_err(|err| server.error(err))?;
        Ok(Opened {
            client,
            connection,
            server,
        })
    }
}

/// Returns the statements that prepare a session. The last one returns the process id of the server.
fn settings(options: &SessionOptions) -> String {
    format!(
        "set statement_timeout = {}; set lock_timeout = {}; set idle_in_transaction_session_timeout = {}; {PINNED_SETTINGS};
         {} select pg_backend_pid()",
        options.statement_timeout.as_millis(),
        options.lock_timeout.as_millis(),
        options.idle_in_transaction_timeout.as_millis(),
        if options.forces_writes {
            "set default_transaction_read_only = off;"
        } else {
            ""
        },
    )
}

impl Server {
    pub(crate) fn error(&self, source: tokio_postgres::Error) -> ConnectError {
        ConnectError::Failed {
            address: self.address.clone(),
            hint: self.hint(&source),
            source,
        }
    }

    /// Returns a hint for errors of TLS and of the authentication method.
    fn hint(&self, err: &tokio_postgres::Error) -> Option<String> {
        if let Some(code) = err.code() {
            if *code != SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
                return None;
            }
            return match (self.encryption, self.has_identity) {
                (Encryption::Disable, _) => Some(
                    "if pg_hba.conf requires TLS, set sslmode=verify-full in the database's URL"
                        .into(),
                ),
                (_, false) => Some(format!(
                    "if pg_hba.conf requires a client certificate, set {}",
                    TLS_SETTINGS.identity
                )),
                (_, true) => None,
            };
        }
        let mut cause: &(dyn std::error::Error + 'static) = err;
        while let Some(next) = cause.source() {
            cause = next;
            if let Some(hint) = tls::hint_for(cause, &TLS_SETTINGS) {
                return Some(hint);
            }
            if cause.is::<TlsUnsupported>() {
                return Some(
                    "set ssl = on in postgresql.conf, or change sslmode in the database's URL"
                        .into(),
                );
            }
        }
        None
    }
}

fn has_unix_socket(config: &Config) -> bool {
    config
        .get_hosts()
        .iter()
        .any(|host| !matches!(host, Host::Tcp(_)))
}

/// Returns `host:port` of each server. Hides both if the URL has no user: they may be the start of a truncated URL, a user and
/// a password.
fn address_of(config: &Config) -> String {
    if config.get_user().is_none() {
        return "the database".into();
    }
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{port}"),
            Host::Tcp(host) => format!("{host}:{port}"),
            #[cfg(unix)]
            Host::Unix(directory) => format!("{}/.s.PGSQL.{port}", directory.display()),
        }
    });
    hosts.collect::<Vec<_>>().join(",")
}
