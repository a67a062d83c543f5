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
async fn zombie(kind: ConsumerKind, test: &str) -> Result<(Verdict, u64)> {
    let setup = Setup::with_partitions(test, PARTITIONS).await?;
    let mut load = Load::default();
    load.write(&setup, RECORDS).await?;
    let sampler = Sampler::start(&setup).await?;

    let [zombie, successor] = [(); 2].map(|()| Arc::new(Faulty::new(Counts)));
    let (release, stalled) = mpsc::channel();
    let injected = zombie.inject(Fault::Stall(stalled));
    let first = kind.start(&setup, &zombie, Some("same"))?;
    wait_for_fault(&injected).await?;

    let second = kind.start(&setup, &successor, Some("same"))?;
    setup.sql.wait_for(TOTAL, RECORDS as i64).await?;
    second.stop().await?;

    drop(release);
    // Only the zombie is left to apply these, after its old batch.
    load.settle(&setup).await?;
    first.stop().await?;
    Ok((load.verify(&setup, sampler).await?, zombie.applied()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_applies_nothing_of_its_old_batch() -> Result<()> {
    let (verdict, by_zombie) = zombie(ConsumerKind::Projection, "zombie").await?;
    assert_eq!(verdict, Verdict::default());
    assert_eq!(by_zombie, PARTITIONS as u64, "more than the last records");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_without_compare_and_set_or_with_auto_commit_repeats_its_old_batch() -> Result<()>
{
    for flaw in [Flaw::NoCompare, Flaw::AutoCommit] {
        let (verdict, _) = zombie(ConsumerKind::Naive(flaw), "naive_zombie").await?;
        println!("{flaw:?}: {verdict:?}");
        ensure!(verdict.repeated > 0, "{flaw:?}: {verdict:?}");
        ensure!(verdict.disagreements > 0, "{flaw:?}: {verdict:?}");
    }
    Ok(())
}
