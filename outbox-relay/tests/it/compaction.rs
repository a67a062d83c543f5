//! Kafka's log compaction of published records.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Kafka, Record, WorkDir, eventually};
use outbox_relay::config::SinkKind;

use crate::{
    harness::Session,
    running::{COMPACTED, Running},
};

/// Small segments, compacted soon after they are closed.
const EAGER: [(&str, &str); 4] = [
    COMPACTED,
    ("segment.ms", "100"),
    ("max.compaction.lag.ms", "100"),
    ("min.cleanable.dirty.ratio", "0.01"),
];
/// The active segment is never compacted; a record with this key rolls it.
const FILLER: &str = "filler";

#[tokio::test(flavor = "multi_thread")]
async fn compaction_keeps_the_newest_version_of_every_key_unchanged() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let settings = ["log.cleaner.backoff.ms=100"];
    let kafka = Kafka::start_with_settings(&work_dir, &settings).await?;
    let topic = Addresses::unique_name("compacted");
    kafka.create_topic(&topic, 1, &EAGER).await?;
    let mut running = Running::start(
        &work_dir,
        kafka.brokers(),
        &topic,
        SinkKind::Kafka,
        Duration::from_secs(30),
    )
    .await?;
    running.publish(1_000).await?;
    running.end_writers().await?;
    let session = Session::new(&running.database).await?;
    let tombstone = "with gone as (
            update aggregates set version = version + 1 where key in ('key-0', 'key-1')
            returning key, version)
        insert into outbox (topic, key, event_type, aggregate_version, payload, headers)
        select $1, key, 'deleted', version, null, '{\"reason\":\"asked\"}' from gone";
    session.client.query(tombstone, &[&topic]).await?;
    let sql = "select distinct on (key) key, payload, event_id::text, event_type,
            aggregate_version::text
        from outbox order by key, seq desc";
    let newest = session.client.query(sql, &[]).await?;

    let records = eventually("one record of each key", async || {
        session.write(&topic, FILLER).await?;
        let mut records = running
            .records()
            .await
            .context("the broker did not respond")?;
        records.retain(|record| record.key != FILLER);
        Ok((records.len() == newest.len()).then_some(records))
    })
    .await?;
    let records: HashMap<&str, &Record> = (records.iter())
        .map(|record| (record.key.as_str(), record))
        .collect();
    for row in newest {
        let record = records[row.get::<_, &str>(0)];
        assert_eq!(record.payload.as_deref(), row.get(1), "{record:?}");
        for (index, name) in [(2, "ce_id"), (3, "ce_type"), (4, "ce_aggregateversion")] {
            assert_eq!(record.header(name), row.get(index), "{name} of {record:?}");
        }
        let reason = record.payload.is_none().then_some("asked");
        assert_eq!(record.header("reason"), reason, "{record:?}");
        let content_type = record.payload.is_some().then_some("application/json");
        assert_eq!(record.header("content-type"), content_type, "{record:?}");
    }
    running.stop().await?;
    kafka.process.stop().await;
    Ok(())
}
