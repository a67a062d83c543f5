//! Publishes the committed rows of Postgres outbox tables to Kafka: every one of them, none that was
//! not committed, in order per key.
//!
//! - `pipeline` is one source's life; `pipeline/publisher.rs` is the place to begin reading.
//! - [`postgres`] says what is due and fetches it, elects the leader and keeps its checkpoint.
//! - [`kafka`] sends records, and counts what is acknowledged.
//! - `dead_letters` keeps what Kafka rejects.
//! - `ops` is what operators see: status, metrics, `check`. `hints` say what to do about what goes wrong.
//! - [`config`] is the file with the settings, `tls` is how nobody else listens.
//!
//! **Invariant:** nothing here ever inserts, updates or deletes a row of the outbox, and the checkpoint is never ahead of the
//! acknowledgements.

pub mod config;
mod dead_letters;
mod hints;
pub mod kafka;
mod ops;
pub mod pipeline;
pub mod postgres;
mod tls;

use std::net::SocketAddr;

use anyhow::Context as _;
use cli::Problems;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, SourceConfig},
    ops::{admin, monitor, status::SharedStatus},
    postgres::leader,
};
pub use crate::{
    dead_letters::{Dropped, Parked, ParkedKey},
    ops::{Finding, Level, check, status_table},
    postgres::ResetTo,
    tls::{Identity, TlsFiles},
};

/// A relay that listens for questions already and does not yet publish.
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
            let hint = "set another address, or end what listens there";
            problems.add(
                "admin_addr",
                format!("can't listen on {admin_addr}: {err}; {hint}"),
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

    /// Publishes every source until `shutdown`; then what is in flight is flushed and the checkpoints
    /// are written, within a few seconds.
    ///
    /// # Errors
    /// If a task panics. What goes wrong with a database or with Kafka is no error: it is logged,
    /// told by `/readyz`, and tried again.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Config { kafka, sources, .. } = self.config;
        tracing::info!(address = %self.admin_addr, sources = sources.len(), "listening");
        if kafka.security.sends_plaintext_password() {
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
            measuring.spawn(monitor::watch(source.clone(), status.clone()));
            tasks.spawn(pipeline::run(
                source,
                kafka.clone(),
                status,
                shutdown.clone(),
            ));
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
/// published once more. Returns the seq behind which it begins.
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
