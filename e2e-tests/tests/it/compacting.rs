//! A system whose topics can be compacted immediately.

use std::{collections::HashSet, process::Command};

use anyhow::{Result, ensure};
use demo::System;
use devstack::{Addresses, NewRecord, Record, Servers, built_programs, eventually};

/// Makes the broker's cleaner run without delay.
const BROKER: [&str; 3] = [
    "log.cleaner.backoff.ms=100",
    "log.retention.check.interval.ms=100",
    "log.initial.task.delay.ms=100",
];
/// Rolls segments quickly and cleans every closed segment.
const EAGER: [(&str, &str); 5] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "100"),
    ("max.compaction.lag.ms", "100"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("file.delete.delay.ms", "100"),
];
/// The number of partitions of the system's topics.
const PARTITIONS: i32 = 6;
/// A record of an unknown type that starts a new segment, because the active segment is never cleaned.
const FILLER: NewRecord<'_> = NewRecord {
    partition: None,
    timestamp_ms: None,
    key: Some(FILLER_KEY.as_bytes()),
    payload: Some(b"{}"),
    headers: &[("ce_specversion", "1.0"), ("ce_type", "filler")],
};
const FILLER_KEY: &str = "filler";

/// Starts a system on its own servers, with additional environment variables for its programs.
pub(crate) async fn start(variables: &[(&str, &str)]) -> Result<System> {
    let servers = Servers::start_with(&["fsync=off"], &BROKER).await?;
    System::start_on(servers, variables).await
}

/// Returns the addresses of its servers.
pub(crate) fn addresses(system: &System) -> Result<Addresses> {
    let servers = system.servers.as_ref().map(Servers::addresses);
    servers.ok_or_else(|| anyhow::anyhow!("a system on servers of its own"))
}

/// Compacts a topic until it has at most one record per key; returns the records.
pub(crate) async fn compact(system: &System, topic: &str) -> Result<Vec<Record>> {
    addresses(system)?.alter_topic(topic, &EAGER).await?;
    compact_until(system, topic, |_| true).await
}

/// Compacts a topic until it has no tombstones either, as a week later. Do not call it after [`compact`]: the
/// first compaction that sees a tombstone fixes the time of its removal.
pub(crate) async fn compact_and_remove_tombstones(
    system: &System,
    topic: &str,
) -> Result<Vec<Record>> {
    let configs = [&EAGER[..], &[("delete.retention.ms", "100")]].concat();
    addresses(system)?.alter_topic(topic, &configs).await?;
    let no_tombstone = |records: &[Record]| records.iter().all(|r| r.payload.is_some());
    compact_until(system, topic, no_tombstone).await
}

async fn compact_until(
    system: &System,
    topic: &str,
    is_done: impl Fn(&[Record]) -> bool,
) -> Result<Vec<Record>> {
    let servers = addresses(system)?;
    eventually(&format!("compaction of {topic}"), async || {
        let fillers = (0..PARTITIONS).map(|partition| NewRecord {
            partition: Some(partition),
            ..FILLER
        });
        servers
            .write_records(topic, &fillers.collect::<Vec<_>>())
            .await?;
        let mut records = servers.read_topic(topic).await?;
        records.retain(|record| record.key != FILLER_KEY);
        let keys: HashSet<&str> = records.iter().map(|record| &*record.key).collect();
        let is_done = keys.len() == records.len() && is_done(&records);
        Ok(is_done.then_some(records))
    })
    .await
}

/// Runs a command of a service on its database, and returns its output.
pub(crate) fn run(system: &System, service: &str, args: &[&str]) -> Result<String> {
    let names = system.stack.names();
    let url = match service {
        "user-service" => &names.users_database_url,
        _ => &names.orders_database_url,
    };
    let output = Command::new(built_programs()?.join(service))
        .args(args)
        .env("DATABASE_URL", url)
        .env("KAFKA_BROKERS", &names.brokers)
        .output()?;
    ensure!(output.status.success(), "{service} {args:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
