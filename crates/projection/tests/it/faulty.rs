//! Faults that strike a projection when a test wants them to.

use std::{
    panic::resume_unwind,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use anyhow::{Context as _, Result};
use devstack::{PATIENCE, eventually};
use diesel::QueryResult;
use diesel_async::AsyncPgConnection;
use parking_lot::Mutex;
use projection::{Poison, Projection, Record};
use tokio_util::sync::CancellationToken;

/// What happens to whoever applies a batch.
pub(crate) enum Fault {
    /// Stands still with the batch in its hands, before it has begun a transaction, until the sender
    /// is dropped.
    Stall(mpsc::Receiver<()>),
    /// Stands still in its transaction, behind its statements, until the token is cancelled.
    Hold(CancellationToken),
    /// Dies in its transaction, behind its statements.
    Crash,
}

/// A projection that a fault can strike.
pub(crate) struct Faulty<P> {
    projection: P,
    next: Mutex<Option<(Fault, CancellationToken)>>,
    applied: AtomicU64,
}

impl<P: Projection> Faulty<P> {
    pub(crate) fn new(projection: P) -> Self {
        Self {
            projection,
            next: Mutex::default(),
            applied: AtomicU64::new(0),
        }
    }

    /// Lets this fault strike the next batch; the token tells when it has.
    pub(crate) fn strike(&self, fault: Fault) -> CancellationToken {
        let struck = CancellationToken::new();
        let mut next = self.next.lock();
        *next = Some((fault, struck.clone()));
        struck
    }

    /// How many changes it was told of as applied.
    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Waits until it has applied more than so many changes: it has a part of the partitions then.
    pub(crate) async fn wait_for_more_than(&self, changes: u64) -> Result<()> {
        let applied = async || Ok((self.applied() > changes).then_some(()));
        eventually("something applied by a member", applied).await
    }

    fn take(&self, wanted: fn(&Fault) -> bool) -> Option<Fault> {
        let mut next = self.next.lock();
        let (fault, struck) = next.take_if(|(fault, _)| wanted(fault))?;
        struck.cancel();
        Some(fault)
    }
}

impl<P: Projection> Projection for Faulty<P> {
    type Change = P::Change;

    fn decode(&self, record: &Record<'_>) -> Result<Option<P::Change>, Poison> {
        if let Some(Fault::Stall(gate)) = self.take(|fault| matches!(fault, Fault::Stall(_))) {
            // Nothing is ever sent: it ends with its sender.
            let _ = gate.recv();
        }
        self.projection.decode(record)
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, changes: &[P::Change]) -> QueryResult<()> {
        self.projection.apply(conn, changes).await?;
        match self.take(|fault| !matches!(fault, Fault::Stall(_))) {
            Some(Fault::Hold(open)) => open.cancelled().await,
            // Not `panic!`, whose message would look like a failure.
            Some(Fault::Crash) => resume_unwind(Box::new("struck by a fault")),
            _ => {}
        }
        Ok(())
    }

    fn applied(&self, changes: &[P::Change]) {
        self.applied
            .fetch_add(changes.len() as u64, Ordering::AcqRel);
    }
}

/// Waits until a fault has struck.
pub(crate) async fn wait_until_struck(struck: &CancellationToken) -> Result<()> {
    let waiting = tokio::time::timeout(PATIENCE, struck.cancelled());
    waiting.await.context("the fault never struck")
}
