//! Crashes and snapshots between the statements of a batch and their commit.

use std::sync::Arc;

use anyhow::{Result, ensure};
use tokio_util::sync::CancellationToken;

use crate::{
    faulty::{Fault, Faulty, wait_for_fault},
    harness::{Counts, Setup},
    load::{Load, PARTITIONS, Sampler, Verdict, agree},
    naive::Flaw,
    who::ConsumerKind,
};

const RECORDS: usize = 600;

/// Holds a member before its first commit, and takes a snapshot.
async fn hold_before_commit(kind: ConsumerKind, test: &str) -> Result<Verdict> {
    let setup = Setup::with_partitions(test, PARTITIONS).await?;
    let mut load = Load::default();
    load.write(&setup, RECORDS).await?;
    let sampler = Sampler::start(&setup).await?;
    let (projection, release) = (Arc::new(Faulty::new(Counts)), CancellationToken::new());
    let injected = projection.inject(Fault::Hold(release.clone()));
    let member = kind.start(&setup, &projection, None)?;
    wait_for_fault(&injected).await?;
    let agreed = agree(&setup.sql).await?;
    release.cancel();
    load.settle(&setup).await?;
    member.stop().await?;
    let mut verdict = load.verify(&setup, sampler).await?;
    verdict.disagreements += usize::from(!agreed);
    Ok(verdict)
}

/// Crashes a member before its first commit, and replaces it.
async fn crash_before_commit(kind: ConsumerKind, test: &str) -> Result<Verdict> {
    let setup = Setup::with_partitions(test, PARTITIONS).await?;
    let mut load = Load::default();
    load.write(&setup, RECORDS).await?;
    let sampler = Sampler::start(&setup).await?;
    let projection = Arc::new(Faulty::new(Counts));
    let injected = projection.inject(Fault::Crash);
    let crashing = kind.start(&setup, &projection, Some("same"))?;
    wait_for_fault(&injected).await?;
    crashing.join().await?;
    let successor = kind.start(&setup, &projection, Some("same"))?;
    load.settle(&setup).await?;
    successor.stop().await?;
    load.verify(&setup, sampler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_offsets_agree_in_every_snapshot_even_before_a_commit() -> Result<()> {
    let verdict = hold_before_commit(ConsumerKind::Projection, "held").await?;
    assert_eq!(verdict, Verdict::default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn advancing_offsets_before_the_records_is_detected() -> Result<()> {
    let verdict =
        hold_before_commit(ConsumerKind::Naive(Flaw::TwoTransactions), "naive_held").await?;
    println!("{verdict:?}");
    ensure!(verdict.disagreements > 0, "{verdict:?}");
    // Nothing is lost or repeated: that takes a crash.
    assert_eq!((verdict.lost, verdict.repeated), (0, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_the_commit_loses_and_repeats_nothing() -> Result<()> {
    let verdict = crash_before_commit(ConsumerKind::Projection, "crash").await?;
    assert_eq!(verdict, Verdict::default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_a_naive_consumer_before_the_commit_loses_its_batch() -> Result<()> {
    for flaw in [Flaw::AutoCommit, Flaw::TwoTransactions] {
        let verdict = crash_before_commit(ConsumerKind::Naive(flaw), "naive_crash").await?;
        println!("{flaw:?}: {verdict:?}");
        ensure!(verdict.lost > 0, "{flaw:?}: {verdict:?}");
    }
    Ok(())
}
