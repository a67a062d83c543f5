//! The errors of opening a session, with hints.

use std::{
    sync::{Arc, atomic::AtomicI32},
    time::Duration,
};

use tokio_postgres::error::SqlState;

use crate::{transport::TlsUnsupported, url::Encryption};

const TLS_SETTINGS: tls::Settings = tls::Settings {
    ca: "sslrootcert in the database's URL",
    address: "the host in the database's URL",
    identity: "sslcert and sslkey in the database's URL",
};

/// A session that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL, or a file that it names, is unusable.
    #[error("invalid database URL: {0}")]
    Url(String),
    /// The connection failed, or Postgres rejected it.
    #[error("failed to connect to {address}: {}{}", cause_of(cause), after_semicolon(.hint))]
    Failed {
        /// `host:port`.
        address: String,
        /// The cause. It is a part of the message.
        cause: tokio_postgres::Error,
        /// A hint about TLS or authentication.
        hint: Option<String>,
    },
    /// diesel's own settings were rejected.
    #[error("failed to prepare a session on {address}: {cause}")]
    Setup {
        /// `host:port`.
        address: String,
        /// The cause. It is a part of the message.
        cause: Box<dyn std::error::Error + Send + Sync>,
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
    /// Returns the SQLSTATE if Postgres reported the error.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Failed { cause, .. } => cause.code(),
            _ => None,
        }
    }
}

fn after_semicolon(hint: &Option<String>) -> String {
    hint.as_ref()
        .map_or_else(String::new, |hint| format!("; {hint}"))
}

/// Returns the cause of an error without Postgres' DETAIL, which can contain the values of a row.
pub(crate) fn cause_of(err: &tokio_postgres::Error) -> String {
    err.as_db_error().map_or_else(
        || cli::chain(err),
        |err| format!("{}: {}", err.severity(), err.message()),
    )
}

/// The other end of a connection.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) encryption: Encryption,
    pub(crate) has_identity: bool,
    /// The process id that the server sent for cancellation; 0 if it is unknown.
    pub(crate) process_id: Arc<AtomicI32>,
}

impl Server {
    pub(crate) fn error(&self, cause: tokio_postgres::Error) -> ConnectError {
        ConnectError::Failed {
            address: self.address.clone(),
            hint: self.hint(&cause),
            cause,
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
