//! Each record is applied exactly once, through restarts, conflicts and errors.

use anyhow::{Context as _, Result};
use devstack::{Addresses, NewRecord, WAIT_TIMEOUT};
use projection::ConsumerState;
use rdkafka::{
    ClientConfig,
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

use crate::harness::{DEAD, Setup, TOTAL};

#[tokio::test(flavor = "multi_thread")]
async fn each_record_is_applied_once_from_the_earliest_across_restarts() -> Result<()> {
    let setup = Setup::new("once").await?;
    for key in ["a", "b", "c"] {
        setup.count(key).await?;
    }
    for round in 1..=3 {
        let running = setup.start();
        setup.sql.wait_for(TOTAL, round * 3).await?;
        running.stop().await;
        for key in ["a", "b", "c"] {
            setup.count(key).await?;
        }
    }
    setup
        .sql
        .wait_for("select count(*) from counts where count = 3", 3)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_offsets_were_advanced_applies_nothing_twice() -> Result<()> {
    let setup = Setup::new("overtaken").await?;
    let running = setup.start();
    setup.count("a").await?;
    setup.sql.wait_for(TOTAL, 1).await?;
    // A second consumer of the partition has already applied the next record.
    setup
        .sql
        .batch_execute(
            "update projection_offsets set next_offset = next_offset + 1 where next_offset > 0",
        )
        .await?;
    setup.count("a").await?;
    setup.count("a").await?;
    setup
        .sql
        .wait_for("select max(next_offset) from projection_offsets", 3)
        .await?;
    setup.sql.wait_for(TOTAL, 2).await?;
    running.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_error_is_retried_until_it_is_resolved() -> Result<()> {
    let setup = Setup::new("failing").await?;
    let running = setup.start();
    setup
        .sql
        .batch_execute("alter table counts rename to away")
        .await?;
    setup.count("a").await?;
    let mut state = running.consumer.state();
    let failing =
        state.wait_for(|s| matches!(s, ConsumerState::Failing(why) if why.contains("counts")));
    tokio::time::timeout(WAIT_TIMEOUT, failing)
        .await
        .context("no failing state")??;
    setup
        .sql
        .batch_execute("alter table away rename to counts")
        .await?;
    setup.sql.wait_for(TOTAL, 1).await?;
    let mut state = running.consumer.state();
    let again = state.wait_for(|state| *state == ConsumerState::Running);
    tokio::time::timeout(WAIT_TIMEOUT, again)
        .await
        .context("still failing")??;
    running.stop().await;
    setup.sql.wait_for(DEAD, 0).await
}

/// Other producers may use any codec.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_every_compression_codec_are_applied() -> Result<()> {
    let setup = Setup::new("compressed").await?;
    let topic = setup.name.clone();
    let writing = tokio::task::spawn_blocking(move || {
        for codec in ["gzip", "snappy", "lz4", "zstd"] {
            let producer: BaseProducer = ClientConfig::new()
                .set("bootstrap.servers", Addresses::shared().brokers())
                .set("compression.codec", codec)
                .create()?;
            for _ in 0..20 {
                let header = Header {
                    key: "ce_type",
                    value: Some("count"),
                };
                let record = BaseRecord::to(&topic)
                    .key(codec)
                    .payload("{}")
                    .headers(OwnedHeaders::new().insert(header));
                producer.send(record).map_err(|(err, _)| err)?;
            }
            producer.flush(WAIT_TIMEOUT)?;
        }
        Ok::<_, KafkaError>(())
    });
    writing.await??;
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 80).await?;
    running.stop().await;
    Ok(())
}

/// Within seconds, and not after librdkafka's default of five minutes.
#[tokio::test(flavor = "multi_thread")]
async fn added_partitions_are_consumed() -> Result<()> {
    let setup = Setup::with_partitions("grown", 1).await?;
    setup.count("a").await?;
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 1).await?;
    Addresses::shared().add_partitions(&setup.name, 2).await?;
    let record = NewRecord {
        partition: Some(1),
        key: Some(b"b"),
        payload: Some(b"{}"),
        headers: &[("ce_type", "count")],
        ..NewRecord::default()
    };
    Addresses::shared()
        .write_records(&setup.name, &[record])
        .await?;
    setup.sql.wait_for(TOTAL, 2).await?;
    running.stop().await;
    Ok(())
}
