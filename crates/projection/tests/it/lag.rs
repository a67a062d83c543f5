//! The lag of a projection, in records and seconds.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use devstack::{Addresses, NewRecord, eventually};
use projection::{PartitionStatus, RebuildOptions, status};
use rdkafka::{
    ClientConfig,
    error::KafkaResult,
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::harness::{DEAD, Setup, TOTAL};

const TIMEOUT: Duration = Duration::from_secs(20);

impl Setup {
    async fn status(&self) -> Result<Vec<PartitionStatus>> {
        status(&mut self.session().await?, &self.rebuild_options()).await
    }

    /// Returns the status when the first partition has this end: Kafka writes the marker of a transaction some
    /// time after its response.
    async fn status_with_end(&self, end_offset: i64) -> Result<Vec<PartitionStatus>> {
        eventually("the marker of a transaction", async || {
            let status = self.status().await?;
            Ok((status[0].end_offset == end_offset).then_some(status))
        })
        .await
    }

    /// Writes a record with this timestamp to a partition.
    async fn write_at(&self, partition: i32, timestamp_ms: i64) -> Result<()> {
        let record = NewRecord {
            partition: Some(partition),
            timestamp_ms: Some(timestamp_ms),
            key: Some(b"a"),
            payload: Some(b"{}"),
            headers: &[("ce_type", "count")],
        };
        let servers = Addresses::shared();
        servers.write_records(&self.name, &[record]).await
    }

    /// Runs a consumer until this number of records is applied in total.
    async fn apply(&self, records: i64) -> Result<()> {
        let running = self.start();
        self.sql.wait_for(TOTAL, records).await?;
        running.stop().await;
        Ok(())
    }
}

fn now_ms() -> Result<i64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(now.as_millis() as i64)
}

fn lags(partitions: &[PartitionStatus]) -> Vec<i64> {
    partitions.iter().map(|p| p.lag_records).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_reports_pending_records_and_the_age_of_the_oldest() -> Result<()> {
    let setup = Setup::new("lag").await?;
    let began_ms = now_ms()?;
    for partition in [0, 0, 0, 1, 1, 2] {
        setup.write_at(partition, began_ms).await?;
    }
    setup.apply(6).await?;
    let caught_up = setup.status().await?;
    assert_eq!(lags(&caught_up), [0, 0, 0]);
    ensure!(caught_up.iter().all(|p| p.lag_s == 0.0), "{caught_up:?}");

    let hour_ago_ms = began_ms - 3_600_000;
    let waiting = [
        (0, hour_ago_ms),
        (0, began_ms),
        (0, began_ms),
        (1, began_ms),
    ];
    for (partition, timestamp_ms) in waiting {
        setup.write_at(partition, timestamp_ms).await?;
    }
    let before_ms = now_ms()?;
    let behind = setup.status().await?;
    let after_ms = now_ms()?;
    assert_eq!(lags(&behind), [3, 1, 0]);
    for (partition, oldest_ms) in [(0, hour_ago_ms), (1, began_ms)] {
        let least_s = (before_ms - oldest_ms) as f64 / 1_000.0;
        let most_s = (after_ms - oldest_ms) as f64 / 1_000.0;
        let lag_s = behind[partition].lag_s;
        ensure!((least_s..=most_s).contains(&lag_s), "{least_s}: {behind:?}");
    }
    assert_eq!(behind[2].lag_s, 0.0);
    let counts: Vec<_> = behind
        .iter()
        .map(|p| (p.next_offset, p.end_offset, p.applied))
        .collect();
    assert_eq!(counts, [(Some(3), 6, 3), (Some(2), 3, 2), (Some(1), 1, 1)]);
    Ok(())
}

/// Writes a record in a transaction, which `end` then commits or aborts.
fn write_in_transaction(
    setup: &Setup,
    end: fn(&BaseProducer, Duration) -> KafkaResult<()>,
) -> Result<()> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", Addresses::shared().brokers())
        .set("transactional.id", &setup.name)
        .create()?;
    producer.init_transactions(TIMEOUT)?;
    producer.begin_transaction()?;
    let record = BaseRecord::to(&setup.name).partition(0).key("a");
    // Dead-lettered: it has no type.
    let sent = producer.send(record.payload("{}"));
    sent.map_err(|(err, _)| err)?;
    producer.flush(TIMEOUT)?;
    Ok(end(&producer, TIMEOUT)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_without_a_record_are_not_lag() -> Result<()> {
    let setup = Setup::with_partitions("gaps", 1).await?;
    let began_ms = now_ms()?;
    setup.write_at(0, began_ms).await?;
    setup.apply(1).await?;
    // Offset 1 and its marker, which consumers do not receive.
    write_in_transaction(&setup, Producer::abort_transaction)?;
    let status = setup.status_with_end(3).await?;
    assert_eq!(status[0].next_offset, Some(1));
    assert_eq!((status[0].lag_records, status[0].lag_s), (0, 0.0));

    setup.write_at(0, began_ms).await?;
    assert_eq!(lags(&setup.status().await?), [1]);
    setup.apply(2).await?;
    // Offset 4 is a record, and offset 5 its marker.
    write_in_transaction(&setup, Producer::commit_transaction)?;
    assert_eq!(lags(&setup.status_with_end(6).await?), [2]);
    let running = setup.start();
    setup.sql.wait_for(DEAD, 1).await?;
    running.stop().await;
    assert_eq!(lags(&setup.status().await?), [0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_by_the_retention_are_not_lag() -> Result<()> {
    let setup = Setup::new("retention").await?;
    let (servers, topic) = (Addresses::shared(), format!("{}.deleted", setup.name));
    servers.create_dead_letter_topic(&topic).await?;
    let record = NewRecord {
        payload: Some(b"{}"),
        ..NewRecord::default()
    };
    servers.write_records(&topic, &[record; 5]).await?;
    let applied_one = format!(
        "insert into projection_offsets (projection, topic, partition, next_offset)
         values ('{}', '{topic}', 0, 1)",
        setup.name
    );
    setup.sql.batch_execute(&applied_one).await?;
    servers.delete_records_before(&topic, 0, 3).await?;
    let options = RebuildOptions {
        topic,
        ..setup.rebuild_options()
    };
    let status = status(&mut setup.session().await?, &options).await?;
    assert_eq!(lags(&status), [2]);
    Ok(())
}
