//! Who follows a topic in a scenario: the crate, or somebody who does it wrong.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use devstack::PATIENCE;
use projection::{Following, Projection, follow};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::Setup,
    naive::{Flaw, follow_naively},
};

/// A way to follow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    Projection,
    Naive(Flaw),
}

/// A member of the group: what a process of its own would be.
pub(crate) struct Member {
    shutdown: CancellationToken,
    end: JoinHandle<()>,
}

impl Who {
    /// Lets a member follow, under a name that a successor can take over, or without one.
    pub(crate) fn follow<P: Projection>(
        self,
        setup: &Setup,
        projection: &Arc<P>,
        instance_id: Option<&str>,
    ) -> Result<Member> {
        let (options, pool) = (setup.options(instance_id), setup.new_pool()?);
        let (projection, shutdown) = (Arc::clone(projection), CancellationToken::new());
        let end = match self {
            Self::Projection => {
                let following = follow(options, projection, pool, shutdown.clone());
                tokio::spawn(Following::ended(following))
            }
            Self::Naive(flaw) => {
                let thread = follow_naively(flaw, options, projection, pool, shutdown.clone());
                tokio::task::spawn_blocking(|| drop(thread.join()))
            }
        };
        Ok(Member { shutdown, end })
    }
}

impl Member {
    /// Asks it to leave, which it does behind the batch that it is about to apply.
    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Waits for its end.
    pub(crate) async fn ended(self) -> Result<()> {
        let ended = tokio::time::timeout(PATIENCE, self.end);
        Ok(ended.await.context("it does not end")??)
    }
}
