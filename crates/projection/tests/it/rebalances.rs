//! Members that join and leave while others are in the middle of their batches.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    faulty::{Fault, Faulty, wait_until_struck},
    harness::{Counts, Setup},
    load::{Load, PARTITIONS, Sampler, Verdict},
    naive::Flaw,
    who::{Member, Who},
};

/// So many are there before the first member comes, so that batches are full ...
const BACKLOG: usize = 3_000;
/// ... and so many come at a time for as long as members come and go.
const WAVE: usize = 12;
const WAVE_INTERVAL: Duration = Duration::from_millis(20);

/// The members of a group.
struct Group<'a> {
    who: Who,
    setup: &'a Setup,
}

type Joined = (Arc<Faulty<Counts>>, Member);

impl Group<'_> {
    /// Lets a member join, and waits until it has applied something of a part of its own.
    async fn join(&self, instance_id: Option<&str>) -> Result<Joined> {
        let projection = Arc::new(Faulty::new(Counts));
        let member = self.who.follow(self.setup, &projection, instance_id)?;
        projection.wait_for_more_than(0).await?;
        Ok((projection, member))
    }

    /// One to four members come and go, in each way that there is.
    async fn churn(&self) -> Result<()> {
        let (_, a) = self.join(None).await?;
        let (b, c, d) = tokio::join!(self.join(Some("b")), self.join(None), self.join(Some("d")));
        let ((frozen, b), (_, c), (doomed, d)) = (b?, c?, d?);

        // Frozen with a batch in its hands while another one has its place, and applies the same. Then
        // it goes on, with that batch and with what comes.
        let (gate, stalled) = mpsc::channel();
        wait_until_struck(&frozen.strike(Fault::Stall(stalled))).await?;
        let (_, heir_of_b) = self.join(Some("b")).await?;
        heir_of_b.stop().await?;
        let before = frozen.applied();
        drop(gate);
        frozen.wait_for_more_than(before).await?;

        // Leaves, with a word to the group.
        c.stop().await?;

        // Dies without one, in the middle of a transaction.
        wait_until_struck(&doomed.strike(Fault::Crash)).await?;
        d.ended().await?;
        let (_, heir_of_d) = self.join(Some("d")).await?;

        a.stop().await?;
        let (_, last) = self.join(None).await?;
        for member in [b, heir_of_d, last] {
            member.stop().await?;
        }
        Ok(())
    }
}

/// Writes for as long as members come and go.
fn keep_writing(
    mut load: Load,
    setup: &Arc<Setup>,
    ended: &CancellationToken,
) -> JoinHandle<Result<Load>> {
    let (setup, ended) = (Arc::clone(setup), ended.clone());
    tokio::spawn(async move {
        let mut waves = tokio::time::interval(WAVE_INTERVAL);
        while !ended.is_cancelled() {
            waves.tick().await;
            load.write(&setup, WAVE).await?;
        }
        Ok(load)
    })
}

async fn churn(who: Who, test: &str) -> Result<Verdict> {
    let setup = Arc::new(Setup::with_partitions(test, PARTITIONS).await?);
    let mut load = Load::default();
    load.write(&setup, BACKLOG).await?;
    let sampler = Sampler::start(&setup).await?;
    let ended = CancellationToken::new();
    let writing = keep_writing(load, &setup, &ended);
    let group = Group { who, setup: &setup };
    let churned = group.churn().await;
    ended.cancel();
    let mut load = writing.await??;
    churned?;
    let last = who.follow(&setup, &Arc::new(Faulty::new(Counts)), None)?;
    load.settle(&setup).await?;
    last.stop().await?;
    load.judge(&setup, sampler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_come_and_go_lose_and_repeat_nothing() -> Result<()> {
    let verdict = churn(Who::Projection, "churn").await?;
    assert_eq!(verdict, Verdict::default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_auto_commit_lose_or_repeat_records_when_they_come_and_go() -> Result<()> {
    let verdict = churn(Who::Naive(Flaw::AutoCommit), "auto_churn").await?;
    println!("{verdict:?}");
    ensure!(verdict.lost + verdict.repeated > 0, "{verdict:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_without_compare_repeat_records_when_they_come_and_go() -> Result<()> {
    let verdict = churn(Who::Naive(Flaw::NoCompare), "uncompared_churn").await?;
    println!("{verdict:?}");
    ensure!(verdict.repeated > 0, "{verdict:?}");
    Ok(())
}
