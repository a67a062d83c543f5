use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio_postgres::{
    Client, Config, Connection, SimpleQueryMessage, Socket,
    config::{Host, SslMode, SslNegotiation},
    error::SqlState,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    error::{ConnectError, Server, cause_of},
    options::SessionOptions,
    pooler,
    transport::{Connector, Transport},
    url::{DatabaseUrl, Encryption, Target, has_unix_socket},
};

/// The time after which an unacknowledged packet closes the connection.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent peer of an idle connection is detected after 5 + 3 * 2 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_RETRIES: u32 = 3;

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
    let process_id = opened.query_i32(&options.statements()).await?;
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
        // Each of several hosts gets its share, so that a silent one does not use up the limit. A single one has all of it, and
        // `with_timeout` reports it.
        let timeout = match hosts {
            ..=1 => options.connect_timeout + Duration::from_secs(1),
            hosts => options.connect_timeout / hosts,
        };
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
