//! Postgres sessions that do not trust their environment.
//!
//! - `url` parses a database URL with libpq's TLS parameters.
//! - [`connect`](connect()) opens a session: limits on every wait, settings that the role or the database can't change
//!   (`options`).
//! - `transport` is the connection below it, and negotiates TLS. `message_monitor` follows its messages, and
//!   detects a server that does not respond.
//! - `pooler` detects a connection pooler in transaction mode.
//! - `diesel` and `pool` (the feature `diesel`) open sessions for diesel. `error_response` keeps the SQLSTATE of their errors.

mod connect;
#[cfg(feature = "diesel")]
mod diesel;
mod error;
mod error_response;
mod message_monitor;
mod options;
#[cfg(feature = "diesel")]
mod pool;
mod pooler;
mod transport;
mod url;

#[cfg(feature = "diesel")]
pub use self::{
    diesel::{connect_diesel, is_data_error, is_unavailable, sqlstate},
    pool::{Pool, PoolError, PooledSession},
};
pub use tokio_postgres::error::SqlState;

pub use self::{
    connect::connect,
    error::ConnectError,
    options::{SessionOptions, apply_settings},
    url::DatabaseUrl,
};
