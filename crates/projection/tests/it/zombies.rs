//! Two who follow the same partition at once.

use std::sync::{Arc, mpsc};

use anyhow::{Result, ensure};

use crate::{
    faulty::{Fault, Faulty, wait_until_struck},
    harness::{Counts, Setup, TOTAL},
    load::{Load, PARTITIONS, Sampler, Verdict},
    naive::Flaw,
    who::Who,
};

const RECORDS: usize = 600;

/// A member stands still with its first batch in its hands. Another one takes its name over, and with
/// it the partitions, and applies everything. Then the first one goes on where it was. Returns also
/// how many records that one has applied.
async fn zombie(who: Who, test: &str) -> Result<(Verdict, u64)> {
    let setup = Setup::with_partitions(test, PARTITIONS).await?;
    let mut load = Load::default();
    load.write(&setup, RECORDS).await?;
    let sampler = Sampler::start(&setup).await?;

    let [zombie, heir] = [(); 2].map(|()| Arc::new(Faulty::new(Counts)));
    let (gate, stalled) = mpsc::channel();
    let struck = zombie.strike(Fault::Stall(stalled));
    let first = who.follow(&setup, &zombie, Some("same"))?;
    wait_until_struck(&struck).await?;

    let second = who.follow(&setup, &heir, Some("same"))?;
    setup.sql.wait_for(TOTAL, RECORDS as i64).await?;
    second.stop().await?;

    drop(gate);
    // Nobody is left but the zombie to apply these: it is through with its old batch then.
    load.settle(&setup).await?;
    first.stop().await?;
    Ok((load.judge(&setup, sampler).await?, zombie.applied()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_goes_on_with_its_old_batch_is_overtaken_and_applies_none_of_it() -> Result<()>
{
    let (verdict, by_zombie) = zombie(Who::Projection, "zombie").await?;
    assert_eq!(verdict, Verdict::default());
    assert_eq!(by_zombie, PARTITIONS as u64, "more than the last records");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_without_compare_or_with_auto_commit_applies_its_old_batch_again() -> Result<()> {
    for flaw in [Flaw::NoCompare, Flaw::AutoCommit] {
        let (verdict, _) = zombie(Who::Naive(flaw), "naive_zombie").await?;
        println!("{flaw:?}: {verdict:?}");
        ensure!(verdict.repeated > 0, "{flaw:?}: {verdict:?}");
        ensure!(verdict.disagreements > 0, "{flaw:?}: {verdict:?}");
    }
    Ok(())
}
