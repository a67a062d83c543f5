//! Memory use with a backlog larger than a process may hold.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use devstack::{Addresses, NewRecord, Sql};
use proto::events::{USER_CREATED, header};

use crate::harness::{ORDERS_TOPIC, user};

const SMALL: usize = 1_000;
const LARGE: usize = 20_000;
/// The size of a record, mostly in an unknown field, so that rows stay small.
const RECORD_KB: usize = 10;
/// Half of the large backlog: prefetched records and the batch being applied.
const LIMIT_KB: u64 = (LARGE * RECORD_KB / 2) as u64;

/// A process that is killed at the end of the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the peak memory of a new service that has applied `records` pending records.
async fn peak_kb(records: usize) -> Result<u64> {
    let (name, servers) = (Addresses::unique_name("backlog"), Addresses::shared());
    servers.create_topic(&name, 3).await?;
    let url = servers.create_database(&name).await?;
    ensure!(program("migrate", &url, &name).status()?.success());
    for _ in 0..records / SMALL {
        write(&name, SMALL).await?;
    }
    let process = Process(program("serve", &url, &name).spawn()?);
    let seen = "select sum(next_offset) from projection_offsets";
    let sql = Sql::connect(&url).await?;
    sql.wait_for(seen, records as i64).await?;
    let status = fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().strip_suffix(" kB"));
    Ok(peak.context("no peak")?.parse()?)
}

fn program(subcommand: &str, url: &str, name: &str) -> Command {
    let variables = [
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("DATABASE_URL", url),
        ("KAFKA_BROKERS", Addresses::shared().brokers()),
        ("USERS_TOPIC", name),
        ("ORDERS_TOPIC", ORDERS_TOPIC),
        ("CONSUMER_GROUP", name),
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_order-service"));
    command.arg(subcommand).env_clear().envs(variables);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

async fn write(topic: &str, count: usize) -> Result<()> {
    let padding = format!(r#"{{"padding":"{}","#, "x".repeat(RECORD_KB * 1_000));
    let payloads: Result<Vec<_>> = (0..count)
        .map(|_| {
            let user = user();
            let payload = serde_json::to_string(&user)?.replacen('{', &padding, 1);
            Ok((user.user_id.to_string(), payload))
        })
        .collect();
    let payloads = payloads?;
    let records = payloads.iter().map(|(key, payload)| NewRecord {
        key: Some(key.as_bytes()),
        payload: Some(payload.as_bytes()),
        headers: &[(header::SPEC_VERSION, "1.0"), (header::TYPE, USER_CREATED)],
        ..NewRecord::default()
    });
    let records: Vec<_> = records.collect();
    Addresses::shared().write_records(topic, &records).await
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_when_many_records_are_pending() -> Result<()> {
    let (small, large) = (peak_kb(SMALL).await?, peak_kb(LARGE).await?);
    println!("peak: {small} kB for {SMALL} records of {RECORD_KB} kB, {large} kB for {LARGE}");
    ensure!(
        large < small + LIMIT_KB,
        "{large} kB, with few records {small} kB"
    );
    Ok(())
}
