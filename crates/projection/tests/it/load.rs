//! Writes records, and compares them with what was applied.

use std::collections::BTreeMap;

use anyhow::Result;
use devstack::{Addresses, NewRecord, Sql};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::Setup;

pub(crate) const PARTITIONS: i32 = 6;
const KEYS: usize = 60;

/// The number of records written so far, by key.
#[derive(Default)]
pub(crate) struct Load {
    written: BTreeMap<String, i64>,
    next: usize,
}

/// The violations of a consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The number of records that were not applied.
    pub(crate) lost: i64,
    /// The number of records that were applied again.
    pub(crate) repeated: i64,
    /// The number of snapshots in which tables and offsets disagreed.
    pub(crate) disagreements: usize,
}

impl Load {
    /// Writes records, cycling through the partitions.
    pub(crate) async fn write(&mut self, setup: &Setup, count: usize) -> Result<()> {
        let numbers = self.next..self.next + count;
        self.next = numbers.end;
        let keys = numbers.map(|number| (number % KEYS, format!("k{}", number % KEYS)));
        self.write_keys(setup, keys.collect()).await
    }

    /// Writes a last record with a unique key to each partition, and waits for it. All earlier records are
    /// then applied, or lost.
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

    /// Compares the applied records with the written ones.
    pub(crate) async fn verify(&self, setup: &Setup, sampler: Sampler) -> Result<Verdict> {
        let mut verdict = Verdict {
            disagreements: sampler.stop().await? + usize::from(!agree(&setup.sql).await?),
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

/// Compares tables and offsets in one statement, and therefore in one snapshot. Every offset is a record here.
const AGREE: &str = "
    select coalesce(sum(applied + skipped + dead_lettered) = sum(next_offset), true)
       and coalesce(sum(applied), 0) = (select coalesce(sum(count), 0) from counts)
    from projection_offsets";

/// A task that checks continuously whether tables and offsets agree.
pub(crate) struct Sampler {
    stopped: CancellationToken,
    task: JoinHandle<Result<usize>>,
}

impl Sampler {
    pub(crate) async fn start(setup: &Setup) -> Result<Self> {
        let sql = setup.connect_sql().await?;
        let stopped = CancellationToken::new();
        let stop = stopped.clone();
        let task = tokio::spawn(async move {
            let (mut samples, mut disagreements) = (0, 0);
            while !stop.is_cancelled() {
                samples += 1;
                disagreements += usize::from(!agree(&sql).await?);
            }
            println!("{samples} snapshots");
            Ok(disagreements)
        });
        Ok(Self { stopped, task })
    }

    /// Stops the task, and returns the number of disagreements.
    async fn stop(self) -> Result<usize> {
        self.stopped.cancel();
        self.task.await?
    }
}

/// Returns whether tables and offsets agree now.
pub(crate) async fn agree(sql: &Sql) -> Result<bool> {
    Ok(sql.query_one(AGREE, &[]).await?.get(0))
}
