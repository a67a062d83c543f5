//! Ships the committed rows of Postgres outbox tables to Kafka: every one of them, none that was
//! not committed, in order per key.
//!
//! - `source` is one source's life; `source/shipping.rs` is the place to begin reading.
//! - [`window`] says what is due, [`reader`] fetches it, [`route`] makes a [`record`] of each row, [`sink`]
//!   sends them and counts what is acknowledged, `marks` says which cursor that is, `checkpoint`
//!   keeps it.
//! - `aside` keeps what Kafka refuses; `parked` is what operators see of that.
//! - `backlog` measures what waits in the database, `status` keeps that and all other figures, and
//!   `admin` shows them.
//! - `rotation` empties partitions of which everything was shipped.
//! - `check` looks at all that a configuration names, before anything is shipped; `advice` says what to
//!   do about what goes wrong.
//! - `leader` makes sure that one relay at a time does so.
//! - `session` opens what speaks to Postgres, and `tls` is how nobody else listens, there and on the
//!   way to Kafka.
//!
//! **Invariant:** nothing here ever inserts, updates or deletes a row of the outbox, and the checkpoint is never ahead of the
//! acknowledgements.

mod admin;
mod advice;
mod aside;
mod backlog;
mod check;
mod checkpoint;
pub mod config;
mod leader;
pub mod lease;
mod marks;
mod parked;
pub mod reader;
pub mod record;
mod rotation;
pub mod route;
mod session;
pub mod sink;
mod source;
mod status;
mod table;
mod tls;
mod varint;
pub mod window;

use std::net::SocketAddr;

use anyhow::Context as _;
use program::Problems;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use crate::{
    check::{Finding, Level, check},
    checkpoint::ResetTo,
    parked::{Dropped, Parked, ParkedKey},
    table::status_table,
    tls::{Identity, TlsFiles},
};
use crate::{
    config::{Config, SourceConfig},
    status::SharedStatus,
};

/// A relay that listens for questions already and does not yet ship.
#[derive(Debug)]
pub struct Relay {
    config: Config,
    listener: TcpListener,
    admin_addr: SocketAddr,
}

impl Relay {
    /// Takes the admin port.
    ///
    /// # Errors
    /// If somebody else has it.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let admin_addr = config.admin_addr;
        let listener = TcpListener::bind(admin_addr).await.map_err(|err| {
            let mut problems = Problems::default();
            let fix = "set another address, or end what listens there";
            problems.add(
                "admin_addr",
                format!("can't listen on {admin_addr}: {err}; {fix}"),
            );
            problems.into_error()
        })?;
        Ok(Self {
            admin_addr: listener.local_addr()?,
            config,
            listener,
        })
    }

    /// Where `/livez`, `/readyz` and `/status` are.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Ships every source until `shutdown`; then what is in flight is flushed and the checkpoints
    /// are written, within a few seconds.
    ///
    /// # Errors
    /// If a task panics. What goes wrong with a database or with Kafka is no error: it is logged,
    /// told by `/readyz`, and tried again.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Config { kafka, sources, .. } = self.config;
        tracing::info!(address = %self.admin_addr, sources = sources.len(), "listening");
        if kafka.security.shows_the_password() {
            tracing::warn!(
                "the password goes to Kafka as it is, without TLS; add [kafka.tls], or set \
                 kafka.sasl.mechanism to SCRAM-SHA-512"
            );
        }
        let mut tasks = JoinSet::new();
        // Ends when it is dropped.
        let mut measuring = JoinSet::new();
        let mut statuses = Vec::new();
        for source in sources {
            let status = SharedStatus::new(&source.name);
            statuses.push(status.clone());
            measuring.spawn(backlog::watch(source.clone(), status.clone()));
            tasks.spawn(source::run(source, kafka.clone(), status, shutdown.clone()));
        }
        let admin = tokio::spawn(admin::serve(self.listener, statuses, shutdown));
        while let Some(result) = tasks.join_next().await {
            result.context("a source's task ended unexpectedly")?;
        }
        admin.abort();
        Ok(())
    }
}

/// Makes the next leader of a source begin further back, so that rows which the outbox still holds are
/// shipped once more. Returns the seq behind which it begins.
///
/// # Errors
/// If the database can't be reached, or a relay leads the source.
pub async fn reset(source: &SourceConfig, to: ResetTo) -> anyhow::Result<i64> {
    let reset = leader::reset(source, to).await;
    reset.with_context(|| format!("source {} was not reset", source.name))
}

/// Asks the relay at `address` for `path`, as `/readyz`; returns the HTTP status and the body.
///
/// # Errors
/// If no relay answers there.
pub async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    admin::ask(address, path).await
}
