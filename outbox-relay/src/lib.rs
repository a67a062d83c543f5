//! Publishes the committed rows of Postgres outbox tables to Kafka: every committed row, only committed rows, in order per key.
//!
//! - [`pipeline`] runs one source. Begin reading at `pipeline/publisher.rs`.
//! - [`postgres`] reads pending rows, elects the leader and stores the checkpoint.
//! - [`kafka`] sends records and tracks the acknowledgements.
//! - `dead_letters` stores parked and dead-lettered events.
//! - `ops` has the status, the metrics and `check`. `hints` has the hints attached to errors.
//! - [`clock`] has the timestamps of records.
//! - [`config`] parses the configuration file, `tls` sets up TLS.
//!
//! **Invariant:** the relay never inserts, updates or deletes a row of the outbox, and the checkpoint is never ahead of the
//! acknowledgements. Two exceptions: `reset` replaces the transaction ids of rows that were restored from a dump, and
//! partitions that are completely published are truncated.

#![allow(missing_docs, reason = "a program, not a library")]

pub mod clock;
pub mod config;
mod dead_letters;
mod hints;
pub mod kafka;
mod ops;
pub mod pipeline;
pub mod postgres;

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
    dead_letters::{
        DeadLetter, DeadLetters, DropOutcome, ParkedKey, ParkedKeys, Retried, Selection,
        StoredEvent,
    },
    ops::{Finding, Level, check, status_table},
    postgres::ResetTo,
};

pub use tls::{Identity, TlsFiles};

/// A relay with a bound admin port that does not publish yet.
#[derive(Debug)]
pub struct Relay {
    config: Config,
    listener: TcpListener,
    admin_addr: SocketAddr,
}

impl Relay {
    /// Binds the admin port.
    ///
    /// # Errors
    /// If the port cannot be bound.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let admin_addr = config.admin_addr;
        let listener = TcpListener::bind(admin_addr).await.map_err(|err| {
            let mut problems = Problems::default();
            let hint = "Set another address, or stop the process that listens there.";
            problems.add(
                "admin_addr",
                format!("failed to listen on {admin_addr}: {err}. Hint: {hint}"),
            );
            problems.into_error()
        })?;
        Ok(Self {
            admin_addr: listener.local_addr()?,
            config,
            listener,
        })
    }

    /// Returns the address of `/livez`, `/readyz`, `/status` and `/metrics`.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Publishes every source until `shutdown`. Then drains: waits a few seconds for the acknowledgement of the records in flight
    /// and stores the checkpoints.
    ///
    /// # Errors
    /// If a task panics. Failures of Postgres and Kafka are logged, reported by `/readyz`, and retried.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Config { kafka, sources, .. } = self.config;
        tracing::info!(address = %self.admin_addr, sources = sources.len(), "listening");
        if kafka.security.sends_plaintext_secret() {
            tracing::warn!(
                hint = "Add [kafka.tls], and use https for a token endpoint. Or set kafka.sasl.mechanism to SCRAM-SHA-512.",
                "a password or token is sent in plain text"
            );
        }
        let mut tasks = JoinSet::new();
        // Dropping the set ends the monitors.
        let mut monitors = JoinSet::new();
        let mut statuses = Vec::new();
        for source in sources {
            let status = SharedStatus::new(&source.name);
            statuses.push(status.clone());
            monitors.spawn(monitor::run_monitor(source.clone(), status.clone()));
            tasks.spawn(pipeline::run(
                source,
                kafka.clone(),
                status,
                shutdown.clone(),
            ));
        }
        let admin = tokio::spawn(admin::serve(self.listener, statuses, shutdown));
        while let Some(result) = tasks.join_next().await {
            result.context("the task of a source panicked")?;
        }
        admin.abort();
        Ok(())
    }
}

/// Moves the checkpoint of a source back, so that the next leader publishes rows of the outbox again. Returns the seq behind
/// which it starts.
///
/// # Errors
/// If the database is unavailable, or a relay leads the source.
pub async fn reset(source: &SourceConfig, to: ResetTo) -> anyhow::Result<i64> {
    let reset = leader::reset(source, to).await;
    reset.with_context(|| format!("failed to reset source {}", source.name))
}

/// Requests `path`, such as `/readyz`, from the relay at `address`. Returns the HTTP status and the body.
///
/// # Errors
/// If no relay responds.
pub async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    admin::ask(address, path).await
}
