//! Members join and leave while others apply batches.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    faulty::{Fault, Faulty, wait_for_fault},
    harness::{Counts, Setup},
    load::{Load, PARTITIONS, Sampler, Verdict},
    naive::Flaw,
    who::{ConsumerKind, Member},
};

/// The records written before the first member joins, so that batches are full.
const BACKLOG: usize = 3_000;
/// The records written per interval while members join and leave.
const WAVE: usize = 12;
const WAVE_INTERVAL: Duration = Duration::from_millis(20);

/// The members of a group.
struct Group<'a> {
    kind: ConsumerKind,
    setup: &'a Setup,
}

type Joined = (Arc<Faulty<Counts>>, Member);

impl Group<'_> {
    /// Starts a member, and waits until it has applied records of its partitions.
    async fn join(&self, instance_id: Option<&str>) -> Result<Joined> {
        let projection = Arc::new(Faulty::new(Counts));
        let member = self.kind.start(self.setup, &projection, instance_id)?;
        projection.wait_for_more_than(0).await?;
        Ok((projection, member))
    }

    /// One to four members join and leave: by shutdown, crash, and replacement of a blocked member.
    async fn churn(&self) -> Result<()> {
        let (_, a) = self.join(None).await?;
        let (b, c, d) = tokio::join!(self.join(Some("b")), self.join(None), self.join(Some("d")));
        let ((blocked, b), (_, c), (crashing, d)) = (b?, c?, d?);

        // Blocked with a batch while a member with the same instance id applies the same records. Then it
        // continues, with that batch and with new records.
        let (release, stalled) = mpsc::channel();
        wait_for_fault(&blocked.inject(Fault::Stall(stalled))).await?;
        let (_, successor_of_b) = self.join(Some("b")).await?;
        successor_of_b.stop().await?;
        let before = blocked.applied();
        drop(release);
        blocked.wait_for_more_than(before).await?;

        // Leaves the group.
        c.stop().await?;

        // Crashes in a transaction, without leaving the group.
        wait_for_fault(&crashing.inject(Fault::Crash)).await?;
        d.join().await?;
        let (_, successor_of_d) = self.join(Some("d")).await?;

        a.stop().await?;
        let (_, last) = self.join(None).await?;
        for member in [b, successor_of_d, last] {
            member.stop().await?;
        }
        Ok(())
    }
}

/// Writes records until the token is cancelled.
fn spawn_writer(
    mut load: Load,
    setup: &Arc<Setup>,
    stopped: &CancellationToken,
) -> JoinHandle<Result<Load>> {
    let (setup, stopped) = (Arc::clone(setup), stopped.clone());
    tokio::spawn(async move {
        let mut waves = tokio::time::interval(WAVE_INTERVAL);
        while !stopped.is_cancelled() {
            waves.tick().await;
            load.write(&setup, WAVE).await?;
        }
        Ok(load)
    })
}

async fn churn(kind: ConsumerKind, test: &str) -> Result<Verdict> {
    let setup = Arc::new(Setup::with_partitions(test, PARTITIONS).await?);
    let mut load = Load::default();
    load.write(&setup, BACKLOG).await?;
    let sampler = Sampler::start(&setup).await?;
    let stopped = CancellationToken::new();
    let writing = spawn_writer(load, &setup, &stopped);
    let group = Group {
        kind,
        setup: &setup,
    };
    let churned = group.churn().await;
    stopped.cancel();
    let mut load = writing.await??;
    churned?;
    let last = kind.start(&setup, &Arc::new(Faulty::new(Counts)), None)?;
    load.settle(&setup).await?;
    last.stop().await?;
    load.verify(&setup, sampler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_and_leaving_members_lose_and_repeat_nothing() -> Result<()> {
    let verdict = churn(ConsumerKind::Projection, "churn").await?;
    assert_eq!(verdict, Verdict::default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_auto_commit_lose_or_repeat_records_in_rebalances() -> Result<()> {
    let verdict = churn(ConsumerKind::Naive(Flaw::AutoCommit), "auto_churn").await?;
    println!("{verdict:?}");
    ensure!(verdict.lost + verdict.repeated > 0, "{verdict:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_without_compare_and_set_repeat_records_in_rebalances() -> Result<()> {
    let verdict = churn(ConsumerKind::Naive(Flaw::NoCompare), "uncompared_churn").await?;
    println!("{verdict:?}");
    ensure!(verdict.repeated > 0, "{verdict:?}");
    Ok(())
}
