//! Leader elections: clean ones change nothing, unclean ones lose records.

use std::sync::Arc;

use anyhow::{Result, ensure};
use devstack::{Addresses, KafkaCluster, NewRecord, WorkDir, eventually};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};

use crate::harness::{Setup, TOTAL};

const LEADER: i32 = 1;
const FOLLOWER: i32 = 2;
const SAVE_EPOCHS: &str =
    "create table saved as select leader_epoch, epoch_offset from projection_offsets";
const RESTORE_EPOCHS: &str = "update projection_offsets as o
     set leader_epoch = saved.leader_epoch, epoch_offset = saved.epoch_offset from saved";

/// Creates a topic with one partition on two brokers. Only the leader has to have a record.
async fn create_topic(brokers: &str, name: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let replicas: [&[i32]; 1] = [&[LEADER, FOLLOWER]];
    let topic = NewTopic::new(name, 1, TopicReplication::Variable(&replicas))
        .set("min.insync.replicas", "1")
        .set("unclean.leader.election.enable", "true");
    let results = admin.create_topics([&topic], &AdminOptions::new()).await?;
    ensure!(results.iter().all(Result::is_ok), "{results:?}");
    Ok(())
}

async fn write(setup: &Setup, records: usize) -> Result<()> {
    let record = NewRecord {
        partition: Some(0),
        key: Some(b"a"),
        payload: Some(b"{}"),
        headers: &[("ce_type", "count")],
        ..NewRecord::default()
    };
    let records: Vec<_> = (0..records).map(|_| record).collect();
    setup.servers.write_records(&setup.name, &records).await
}

async fn wait_for_leader(kafka: &KafkaCluster, topic: &str, leader: i32) -> Result<()> {
    eventually(&format!("broker {leader} leads"), async || {
        // An error is retried: the queried broker may be the one that is down.
        Ok((kafka.leader(topic).await.ok() == Some(leader)).then_some(()))
    })
    .await
}

fn epochs(offset: i64) -> String {
    format!("select count(*) from projection_offsets where epoch_offset = {offset}")
}

#[tokio::test(flavor = "multi_thread")]
async fn records_lost_in_an_unclean_election_stop_the_consumer_and_a_clean_one_does_not()
-> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let mut kafka = KafkaCluster::start(&work_dir).await?;
    let servers = Addresses::shared().with_brokers(kafka.brokers());
    let setup = Setup::without_topic(&servers, "unclean").await?;
    create_topic(kafka.brokers(), &setup.name).await?;
    wait_for_leader(&kafka, &setup.name, LEADER).await?;
    write(&setup, 10).await?;
    let running = setup.start();
    setup.sql.wait_for(TOTAL, 10).await?;
    setup.sql.wait_for(&epochs(10), 1).await?;

    setup.sql.batch_execute(SAVE_EPOCHS).await?;

    // A clean election, with records of the new epoch after it. It is restarted, and leads again.
    kafka.process(LEADER)?.kill();
    wait_for_leader(&kafka, &setup.name, FOLLOWER).await?;
    write(&setup, 5).await?;
    setup.sql.wait_for(TOTAL, 15).await?;
    running.stop().await;
    // As if it had crashed before it stored the new epoch.
    setup.sql.batch_execute(RESTORE_EPOCHS).await?;
    let running = setup.start();
    running.wait_until_running().await?;
    wait_for_leader(&kafka, &setup.name, LEADER).await?;

    // The follower misses records that were acknowledged and applied, and becomes the leader.
    kafka.process(FOLLOWER)?.suspend();
    // The first one can still be in the response to a fetch that the follower sent before.
    write(&setup, 1).await?;
    write(&setup, 4).await?;
    setup.sql.wait_for(TOTAL, 20).await?;
    setup.sql.wait_for(&epochs(20), 1).await?;
    running.stop().await;
    kafka.process(LEADER)?.kill_and_hold().await;
    kafka.process(FOLLOWER)?.resume();
    wait_for_leader(&kafka, &setup.name, FOLLOWER).await?;
    // The log is longer than before.
    write(&setup, 20).await?;
    let running = setup.start();
    let reason = running.wait_for_stop().await?;
    let names_offsets = reason.contains("to 19 of partition 0 are lost");
    ensure!(
        names_offsets && reason.contains("unclean leader election"),
        "{reason}"
    );
    ensure!(reason.contains("`projection reset`"), "{reason}");
    running.stop().await;
    setup.sql.wait_for(TOTAL, 20).await?;
    kafka.stop().await;
    Ok(())
}
