//! The moment between the statements of a batch and their commit.

use std::sync::Arc;

use anyhow::{Result, ensure};
use tokio_util::sync::CancellationToken;

use crate::{
    faulty::{Fault, Faulty, wait_until_struck},
    harness::{Counts, Setup},
    load::{Load, PARTITIONS, Sampler, Verdict, agree},
    naive::Flaw,
    who::Who,
};

const RECORDS: usize = 600;

/// A member stands still before its first commit, and is looked at.
async fn held(who: Who, test: &str) -> Result<Verdict> {
    let setup = Setup::with_partitions(test, PARTITIONS).await?;
    let mut load = Load::default();
    load.write(&setup, RECORDS).await?;
    let sampler = Sampler::start(&setup).await?;
    let (projection, open) = (Arc::new(Faulty::new(Counts)), CancellationToken::new());
    let struck = projection.strike(Fault::Hold(open.clone()));
    let member = who.follow(&setup, &projection, None)?;
    wait_until_struck(&struck).await?;
    let agreed = agree(&setup.sql).await?;
    open.cancel();
    load.settle(&setup).await?;
    member.stop().await?;
    let mut verdict = load.judge(&setup, sampler).await?;
    verdict.disagreements += usize::from(!agreed);
    Ok(verdict)
}

/// A member dies before its first commit, and another one takes its place.
async fn crash(who: Who, test: &str) -> Result<Verdict> {
    let setup = Setup::with_partitions(test, PARTITIONS).await?;
    let mut load = Load::default();
    load.write(&setup, RECORDS).await?;
    let sampler = Sampler::start(&setup).await?;
    let projection = Arc::new(Faulty::new(Counts));
    let struck = projection.strike(Fault::Crash);
    let dying = who.follow(&setup, &projection, Some("same"))?;
    wait_until_struck(&struck).await?;
    dying.ended().await?;
    let heir = who.follow(&setup, &projection, Some("same"))?;
    load.settle(&setup).await?;
    heir.stop().await?;
    load.judge(&setup, sampler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_offsets_agree_in_every_snapshot_also_before_a_commit() -> Result<()> {
    let verdict = held(Who::Projection, "held").await?;
    assert_eq!(verdict, Verdict::default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_are_moved_before_the_records_are_caught() -> Result<()> {
    let verdict = held(Who::Naive(Flaw::TwoTransactions), "naive_held").await?;
    println!("{verdict:?}");
    ensure!(verdict.disagreements > 0, "{verdict:?}");
    // Nothing else has happened to it: it takes a crash to lose something.
    assert_eq!((verdict.lost, verdict.repeated), (0, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_before_its_commit_loses_and_repeats_nothing() -> Result<()> {
    let verdict = crash(Who::Projection, "crash").await?;
    assert_eq!(verdict, Verdict::default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_naive_member_that_dies_before_its_commit_loses_its_batch() -> Result<()> {
    for flaw in [Flaw::AutoCommit, Flaw::TwoTransactions] {
        let verdict = crash(Who::Naive(flaw), "naive_crash").await?;
        println!("{flaw:?}: {verdict:?}");
        ensure!(verdict.lost > 0, "{flaw:?}: {verdict:?}");
    }
    Ok(())
}
