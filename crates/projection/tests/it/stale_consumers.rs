//! Two members consume the same partition at the same time.

use std::sync::{Arc, mpsc};

use anyhow::{Result, ensure};

use crate::{
    faulty::{Fault, Faulty, wait_for_fault},
    harness::{Counts, Setup, TOTAL},
    load::{Load, PARTITIONS, Sampler, Verdict},
    naive::Flaw,
    who::ConsumerKind,
};

const RECORDS: usize = 600;

/// Blocks a member with its first batch. Another one with the same instance id takes over its partitions and
/// applies everything. Then the first one continues. Also returns the number of records that it applied.
async fn run_stale_consumer(kind: ConsumerKind, test: &str) -> Result<(Verdict, u64)> {
    let setup = Setup::with_partitions(test, PARTITIONS).await?;
    let mut load = Load::default();
    load.write(&setup, RECORDS).await?;
    let sampler = Sampler::start(&setup).await?;

    let [stale, successor] = [(); 2].map(|()| Arc::new(Faulty::new(Counts)));
    let (release, stalled) = mpsc::channel();
    let injected = stale.inject(Fault::Stall(stalled));
    let first = kind.start(&setup, &stale, Some("same"))?;
    wait_for_fault(&injected).await?;

    let second = kind.start(&setup, &successor, Some("same"))?;
    setup.sql.wait_for(TOTAL, RECORDS as i64).await?;
    second.stop().await?;

    drop(release);
    // Only the stale consumer is left to apply these, after its old batch.
    load.settle(&setup).await?;
    first.stop().await?;
    Ok((load.verify(&setup, sampler).await?, stale.applied()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_consumer_applies_nothing_of_its_old_batch() -> Result<()> {
    let (verdict, by_stale) = run_stale_consumer(ConsumerKind::Projection, "stale").await?;
    assert_eq!(verdict, Verdict::default());
    assert_eq!(by_stale, PARTITIONS as u64, "more than the last records");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_consumer_without_compare_and_set_or_with_auto_commit_repeats_its_old_batch()
-> Result<()> {
    for flaw in [Flaw::NoCompare, Flaw::AutoCommit] {
        let (verdict, _) = run_stale_consumer(ConsumerKind::Naive(flaw), "naive_stale").await?;
        println!("{flaw:?}: {verdict:?}");
        ensure!(verdict.repeated > 0, "{flaw:?}: {verdict:?}");
        ensure!(verdict.disagreements > 0, "{flaw:?}: {verdict:?}");
    }
    Ok(())
}
