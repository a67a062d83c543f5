//! A system whose topics can be compacted now, and not in a day.

use std::{collections::HashSet, process::Command};

use anyhow::{Result, ensure};
use demo::System;
use devstack::{Addresses, NewRecord, Record, Servers, built_programs, eventually};

/// The broker's threads look at once for what they have to do.
const BROKER: [&str; 3] = [
    "log.cleaner.backoff.ms=100",
    "log.retention.check.interval.ms=100",
    "log.initial.task.delay.ms=100",
];
/// Segments end after a moment, and the cleaner looks at every one that did.
const EAGER: [(&str, &str); 5] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "100"),
    ("max.compaction.lag.ms", "100"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("file.delete.delay.ms", "100"),
];
/// As the system makes its topics.
const PARTITIONS: i32 = 6;
/// The segment that is written to is never cleaned; such a record begins the next one. Its type is one
/// that nobody knows.
const FILLER: NewRecord<'_> = NewRecord {
    partition: None,
    timestamp_ms: None,
    key: Some(FILLER_KEY.as_bytes()),
    payload: Some(b"{}"),
    headers: &[("ce_specversion", "1.0"), ("ce_type", "filler")],
};
const FILLER_KEY: &str = "filler";

/// Starts a system on servers of its own.
pub(crate) async fn start() -> Result<System> {
    let servers = Servers::start_with(&["fsync=off"], &BROKER).await?;
    System::start_on(servers, &[]).await
}

/// Where the servers are.
pub(crate) fn addresses(system: &System) -> Result<Addresses> {
    let servers = system.servers.as_ref().map(Servers::addresses);
    servers.ok_or_else(|| anyhow::anyhow!("a system on servers of its own"))
}

/// Compacts a topic until at most one record of each key is left; returns what is.
pub(crate) async fn compact(system: &System, topic: &str) -> Result<Vec<Record>> {
    addresses(system)?.alter_topic(topic, &EAGER).await?;
    compact_until(system, topic, |_| true).await
}

/// Compacts a topic until no tombstone is left either, as a week later. Not after [`compact`]: when a
/// tombstone goes is settled by the compaction that sees it first.
pub(crate) async fn compact_away(system: &System, topic: &str) -> Result<Vec<Record>> {
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

/// Runs a service's command on its database, and returns what it prints.
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
