//! Brokers are killed, suspended, or lose leadership while rows are published.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Kafka, KafkaCluster, WorkDir};
use outbox_relay::{Level, check, config::SinkKind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{
    for_each_sink,
    harness::Setup,
    running::{COMPACTED, MAX_IN_FLIGHT_RECORDS, Running},
};

for_each_sink! {
    a_stalled_broker_is_detected_and_loses_nothing,
}

const STALLS: usize = 2;
/// Several times the limit on rows in flight.
const BACKLOG: usize = 6 * MAX_IN_FLIGHT_RECORDS;

/// Tests both sinks at once because starting a cluster and restarting its brokers is slow.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_during_a_rolling_failure_of_brokers() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let mut cluster = KafkaCluster::start(&work_dir).await?;
    let mut relays = Vec::new();
    for (sink, timeout) in [
        // Longer than the test waits: a suspended broker's successor must be found before.
        (SinkKind::Kafka, Duration::from_mins(5)),
        (SinkKind::RdKafka, Duration::from_secs(2)),
    ] {
        let topic = Addresses::unique_name("in_turn");
        cluster.create_topic(&topic, 6, &[COMPACTED]).await?;
        relays.push(Running::start(&work_dir, cluster.brokers(), &topic, sink, timeout).await?);
    }
    for id in KafkaCluster::IDS {
        publish(&relays, 300).await?;
        cluster.process(id)?.kill_and_hold().await;
        cluster.wait_until_without(id).await?;
        // Two brokers suffice while the third restarts.
        cluster.process(id)?.release().await;
        publish(&relays, 300).await?;
        cluster.wait_until_in_sync().await?;
    }
    // A broker suspended through the loss of its leadership resumes with old requests in its buffers.
    publish(&relays, 300).await?;
    let suspended = cluster.leader(&relays[0].topic).await?;
    cluster.process(suspended)?.suspend();
    cluster.wait_until_without(suspended).await?;
    publish(&relays, 300).await?;
    cluster.process(suspended)?.resume();
    cluster.wait_until_in_sync().await?;
    publish(&relays, 300).await?;
    for relay in relays {
        let sink = relay.sink;
        let audit = relay.end().await?;
        assert!(audit.is_clean(), "{sink:?}: {audit}");
    }
    cluster.stop().await;
    Ok(())
}

/// The peer at a broker's address may not be a broker. No response may abort the process, even before authentication.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_announces_four_billion_elements_is_an_error() -> Result<()> {
    let mut setup = Setup::new("announces", SinkKind::Kafka).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    setup.brokers = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 12];
            stream.read_exact(&mut request).await?;
            // Length, correlation id, error code 0, and an array.
            let answer = [
                &[0, 0, 0, 11][..],
                &request[8..12],
                &[0, 0],
                &[0xff, 0xff, 0xff, 0xff, 0x0f],
            ];
            stream.write_all(&answer.concat()).await?;
        }
        Ok::<_, std::io::Error>(())
    });
    let found = check(&setup.config()?).await;
    let failed = found.iter().find(|finding| finding.level == Level::Fail);
    let failed = failed.context("a finding")?;
    assert!(failed.what.contains("malformed response"), "{failed}");
    Ok(())
}

async fn publish(relays: &[Running], more: usize) -> Result<()> {
    for relay in relays {
        relay.publish(more).await?;
    }
    Ok(())
}

async fn a_stalled_broker_is_detected_and_loses_nothing(sink: SinkKind) -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let kafka = Kafka::start(&work_dir).await?;
    let topic = Addresses::unique_name("stalled");
    kafka.create_topic(&topic, 3, &[COMPACTED]).await?;
    let timeout = Duration::from_secs(2);
    let running = Running::start(&work_dir, kafka.brokers(), &topic, sink, timeout).await?;
    for stall in 0..STALLS {
        running.publish(300).await?;
        kafka.process.suspend();
        running
            .write_at_once(BACKLOG, &format!("backlog-{stall}"))
            .await?;
        let text = running.wait_for_readiness(503).await?;
        assert!(text.contains("failed to produce to Kafka: "), "{text}");
        kafka.process.resume();
        running.wait_for_readiness(200).await?;
        running.publish(BACKLOG).await?;
    }
    let audit = running.end().await?;
    let wrong = (audit.lost, audit.phantom, audit.inverted);
    assert_eq!(wrong, (0, 0, 0), "{audit}");
    // A resumed broker may still process old requests after those of the next producer. Only the `kafka` sink makes the
    // broker reject them (ADR 4).
    if sink == SinkKind::Kafka {
        assert_eq!(audit.stale, 0, "{audit}");
    }
    kafka.process.stop().await;
    Ok(())
}
