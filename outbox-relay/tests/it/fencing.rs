//! A leader that the broker has fenced.

use std::time::Duration;

use anyhow::Result;
use devstack::eventually;
use outbox_relay::{
    config::SinkKind,
    kafka::{Headers, KafkaSink, Record, Sink as _, SinkOptions},
    postgres::{Cursor, Lease},
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

    let kafka = setup.config()?.kafka;
    let options = SinkOptions {
        max_in_flight: kafka.max_in_flight_records,
        kafka,
        maintenance_interval: Duration::from_secs(1),
        producer_name,
        clock: outbox_relay::clock::Clock::default(),
        start: Cursor::beginning(),
    };
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
