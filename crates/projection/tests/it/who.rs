//! The consumers of a scenario: the crate's, or a flawed one.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use devstack::WAIT_TIMEOUT;
use projection::{Projection, spawn_consumer};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::Setup,
    naive::{Flaw, spawn_naive_consumer},
};

/// The implementation of a consumer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ConsumerKind {
    Projection,
    Naive(Flaw),
}

/// A member of the consumer group; it stands for a process.
pub(crate) struct Member {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl ConsumerKind {
    /// Starts a member. A successor with the same instance id takes over its partitions.
    pub(crate) fn start<P: Projection>(
        self,
        setup: &Setup,
        projection: &Arc<P>,
        instance_id: Option<&str>,
    ) -> Result<Member> {
        let (config, pool) = (setup.config(instance_id), setup.new_pool());
        let (projection, shutdown) = (Arc::clone(projection), CancellationToken::new());
        let task = match self {
            Self::Projection => {
                let consumer = spawn_consumer(config, projection, pool, shutdown.clone());
                tokio::spawn(consumer.join())
            }
            Self::Naive(flaw) => {
                let thread = spawn_naive_consumer(flaw, config, projection, pool, shutdown.clone());
                tokio::task::spawn_blocking(|| drop(thread.join()))
            }
        };
        Ok(Member { shutdown, task })
    }
}

impl Member {
    /// Shuts the member down. It applies its current batch first.
    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.join().await
    }

    /// Waits until the member ends.
    pub(crate) async fn join(self) -> Result<()> {
        let joined = tokio::time::timeout(WAIT_TIMEOUT, self.task);
        Ok(joined.await.context("member still running")??)
    }
}
