//! Faults that a test injects into a projection.

use std::{
    panic::resume_unwind,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use anyhow::{Context as _, Result};
use devstack::{WAIT_TIMEOUT, eventually};
use diesel::QueryResult;
use diesel_async::AsyncPgConnection;
use parking_lot::Mutex;
use projection::{Poison, Projection, Record};
use tokio_util::sync::CancellationToken;

/// A fault of a consumer that applies a batch.
pub(crate) enum Fault {
    /// Blocks with a batch before its transaction begins, until the sender is dropped.
    Stall(mpsc::Receiver<()>),
    /// Blocks in its transaction, after its statements, until the token is cancelled.
    Hold(CancellationToken),
    /// Panics in its transaction, after its statements.
    Crash,
}

/// A projection that accepts faults.
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

    /// Injects a fault into the next batch. The token is cancelled when it takes effect.
    pub(crate) fn inject(&self, fault: Fault) -> CancellationToken {
        let injected = CancellationToken::new();
        let mut next = self.next.lock();
        *next = Some((fault, injected.clone()));
        injected
    }

    /// Returns the number of changes that were committed.
    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Waits until more than this number of changes were committed: the consumer has partitions then.
    pub(crate) async fn wait_for_more_than(&self, changes: u64) -> Result<()> {
        let applied = async || Ok((self.applied() > changes).then_some(()));
        eventually("changes applied by a member", applied).await
    }

    fn take(&self, wanted: fn(&Fault) -> bool) -> Option<Fault> {
        let mut next = self.next.lock();
        let (fault, injected) = next.take_if(|(fault, _)| wanted(fault))?;
        injected.cancel();
        Some(fault)
    }
}

impl<P: Projection> Projection for Faulty<P> {
    type Change = P::Change;

    fn decode(&self, record: &Record<'_>) -> Result<Option<P::Change>, Poison> {
        if let Some(Fault::Stall(gate)) = self.take(|fault| matches!(fault, Fault::Stall(_))) {
            // Nothing is sent: this returns when the sender is dropped.
            let _ = gate.recv();
        }
        self.projection.decode(record)
    }

    fn decode_tombstone(&self, tombstone: &Record<'_>) -> Option<P::Change> {
        self.projection.decode_tombstone(tombstone)
    }

    async fn apply(&self, conn: &mut AsyncPgConnection, changes: &[P::Change]) -> QueryResult<()> {
        self.projection.apply(conn, changes).await?;
        match self.take(|fault| !matches!(fault, Fault::Stall(_))) {
            Some(Fault::Hold(release)) => release.cancelled().await,
            // Not `panic!`: its message would look like a failed test.
            Some(Fault::Crash) => resume_unwind(Box::new("injected fault")),
            _ => {}
        }
        Ok(())
    }

    fn after_commit(&self, changes: &[P::Change]) {
        self.applied
            .fetch_add(changes.len() as u64, Ordering::AcqRel);
    }
}

/// Waits until an injected fault takes effect.
pub(crate) async fn wait_for_fault(injected: &CancellationToken) -> Result<()> {
    let waiting = tokio::time::timeout(WAIT_TIMEOUT, injected.cancelled());
    waiting.await.context("the fault did not take effect")
}
