//! A leader that the broker has fenced.

use std::time::Duration;

use anyhow::{Result, ensure};
use devstack::eventually;
use outbox_relay::{
    config::SinkKind,
    kafka::{Headers, KafkaSink, Record, Sink as _, SinkOptions},
    postgres::{Cursor, Lease},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{Session, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_leader_reports_the_reason_even_if_it_fails_to_store_its_checkpoint() -> Result<()>
{
    let setup = Setup::new("fenced", SinkKind::Kafka).await?;
    let session = Session::new(&setup.database).await?;
    let relay = setup.start().await?;
    setup.write(&session, "a").await?;
    setup.records(1).await?;
    let name = "select format('outbox-relay.%s.%s.%s', source, instance, oid)
        from relay_checkpoints, pg_database where datname = current_database()";
    let producer_name: String = session.client.query_one(name, &[]).await?.get(0);

    let options = sink_options(&setup, producer_name)?;
    let record = Record {
        topic: &setup.topic,
        key: b"a",
        payload: None,
        headers: &Headers::default(),
        partition: None,
        timestamp_ms: None,
    };
    // A successor writes to the partition, which fences the relay there, and takes over the checkpoint in the transaction that
    // writes the next row. A heartbeat can notice the latter first, so there are several attempts.
    eventually("a restart with the reason fenced", async || {
        relay.wait_for_readiness(200).await?;
        let mut sink = KafkaSink::open(options.clone(), Lease::new(Duration::MAX)).await?;
        sink.send(&record).await?;
        sink.flush().await?;
        sink.acknowledgements().wait_until_empty().await?;
        session.client.batch_execute("begin").await?;
        let version = session.change("a").await?;
        session.enqueue(&setup.topic, "a", version).await?;
        session
            .client
            .batch_execute("update relay_checkpoints set epoch = epoch + 1; commit")
            .await?;
        relay.wait_for_restarts(1).await?;
        let (_, text) = outbox_relay::ask(relay.admin_addr, "/status").await?;
        let [status]: [serde_json::Value; 1] = serde_json::from_str(&text)?;
        Ok((status["restarts"]["fenced"] != 0).then_some(()))
    })
    .await?;
    relay.stop().await
}

/// Kafka's last epoch of a producer id. The next registration gets a new id, which does not fence producers of the old one.
const LAST_EPOCH: i16 = i16::MAX - 1;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_producer_id_is_not_relied_on_to_fence_the_previous_one() -> Result<()> {
    let setup = Setup::new("epochs", SinkKind::Kafka).await?;
    let options = sink_options(&setup, setup.topic.clone())?;
    let has_fencing = async || {
        let sink = KafkaSink::open(options.clone(), Lease::new(Duration::MAX)).await?;
        anyhow::Ok(sink.has_fencing())
    };
    assert!(!has_fencing().await?, "the first epoch");
    assert!(has_fencing().await?, "the second epoch");
    let mut broker = TcpStream::connect(&setup.brokers).await?;
    broker.set_nodelay(true)?;
    while register_producer(&mut broker, &setup.topic).await? < LAST_EPOCH {}
    assert!(!has_fencing().await?, "the first epoch of a new id");
    assert!(has_fencing().await?, "its second epoch");
    Ok(())
}

/// Registers a transactional id and returns its epoch: `InitProducerId`, version 1.
async fn register_producer(broker: &mut TcpStream, name: &str) -> Result<i16> {
    let name_length = u16::try_from(name.len())?.to_be_bytes();
    let request = [
        &[0, 22, 0, 1, 0, 0, 0, 7, 0, 4][..],
        b"test",
        &name_length,
        name.as_bytes(),
        &60_000_i32.to_be_bytes(),
    ]
    .concat();
    broker.write_i32(i32::try_from(request.len())?).await?;
    broker.write_all(&request).await?;
    let (_length, _correlation_id) = (broker.read_i32().await?, broker.read_i32().await?);
    let (_throttle_time, error) = (broker.read_i32().await?, broker.read_i16().await?);
    let (_producer_id, epoch) = (broker.read_i64().await?, broker.read_i16().await?);
    ensure!(error == 0, "error {error}");
    Ok(epoch)
}

fn sink_options(setup: &Setup, producer_name: String) -> Result<SinkOptions> {
    let kafka = setup.config()?.kafka;
    Ok(SinkOptions {
        max_in_flight: kafka.max_in_flight_records,
        kafka,
        maintenance_interval: Duration::from_secs(1),
        producer_name,
        clock: outbox_relay::clock::Clock::default(),
        start: Cursor::beginning(),
    })
}
