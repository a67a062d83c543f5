//! Records to count, and what has become of them.

use std::collections::BTreeMap;

use anyhow::Result;
use devstack::{Addresses, NewRecord, Sql};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::Setup;

pub(crate) const PARTITIONS: i32 = 6;
const KEYS: usize = 60;

/// What was written so far: how often each key.
#[derive(Default)]
pub(crate) struct Load {
    written: BTreeMap<String, i64>,
    next: usize,
}

/// What a follower did that it must not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Records that were not applied.
    pub(crate) lost: i64,
    /// How often records were applied that had been before.
    pub(crate) repeated: i64,
    /// How often the tables and the offsets beside them were seen to disagree.
    pub(crate) disagreements: usize,
}

impl Load {
    /// Writes so many records, into each partition in turn.
    pub(crate) async fn write(&mut self, setup: &Setup, count: usize) -> Result<()> {
        let numbers = self.next..self.next + count;
        self.next = numbers.end;
        let keys = numbers.map(|number| (number % KEYS, format!("k{}", number % KEYS)));
        self.write_keys(setup, keys.collect()).await
    }

    /// Writes a last record into each partition, of a key that nothing else has, and waits for it:
    /// what was written before is applied then, or never will be.
    pub(crate) async fn settle(&mut self, setup: &Setup) -> Result<()> {
        let keys = (0..PARTITIONS as usize).map(|number| (number, format!("end{number}")));
        self.write_keys(setup, keys.collect()).await?;
        let ends = "select count(*) from counts where key like 'end%'";
        setup.sql.wait_for(ends, PARTITIONS.into()).await
    }

    async fn write_keys(&mut self, setup: &Setup, keys: Vec<(usize, String)>) -> Result<()> {
        let records = keys.iter().map(|(number, key)| NewRecord {
            partition: Some(*number as i32 % PARTITIONS),
            key: Some(key.as_bytes()),
            payload: Some(b"{}"),
            headers: &[("ce_type", "count")],
            ..NewRecord::default()
        });
        let records: Vec<_> = records.collect();
        Addresses::shared()
            .write_records(&setup.name, &records)
            .await?;
        for (_, key) in keys {
            *self.written.entry(key).or_default() += 1;
        }
        Ok(())
    }

    /// Compares what was applied with what was written.
    pub(crate) async fn judge(&self, setup: &Setup, sampler: Sampler) -> Result<Verdict> {
        let mut verdict = Verdict {
            disagreements: sampler.end().await? + usize::from(!agree(&setup.sql).await?),
            ..Verdict::default()
        };
        let query = "select key, count::bigint from counts";
        let rows = setup.sql.query(query, &[]).await?;
        let found: BTreeMap<String, i64> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        for (key, written) in &self.written {
            let found = found.get(key).copied().unwrap_or_default();
            verdict.lost += (written - found).max(0);
            verdict.repeated += (found - written).max(0);
        }
        Ok(verdict)
    }
}

/// Whether the tables hold what the offsets beside them say, in one statement, and so in one snapshot.
/// Each offset up to the next one is a record here.
const AGREE: &str = "
    select coalesce(sum(applied + skipped + dead_lettered) = sum(next_offset), true)
       and coalesce(sum(applied), 0) = (select coalesce(sum(count), 0) from counts)
    from projection_offsets";

/// Somebody who looks again and again whether tables and offsets agree.
pub(crate) struct Sampler {
    ended: CancellationToken,
    task: JoinHandle<Result<usize>>,
}

impl Sampler {
    pub(crate) async fn start(setup: &Setup) -> Result<Self> {
        let sql = setup.look().await?;
        let ended = CancellationToken::new();
        let end = ended.clone();
        let task = tokio::spawn(async move {
            let (mut samples, mut disagreements) = (0, 0);
            while !end.is_cancelled() {
                samples += 1;
                disagreements += usize::from(!agree(&sql).await?);
            }
            println!("{samples} snapshots");
            Ok(disagreements)
        });
        Ok(Self { ended, task })
    }

    /// Ends it; returns how often they disagreed.
    async fn end(self) -> Result<usize> {
        self.ended.cancel();
        self.task.await?
    }
}

/// Whether tables and offsets agree now.
pub(crate) async fn agree(sql: &Sql) -> Result<bool> {
    Ok(sql.query_one(AGREE, &[]).await?.get(0))
}
