use std::{fs, thread};

use anyhow::Result;
use devstack::{Kafka, Sql};
use serde::Serialize;

/// The hardware and software of a measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub memory_gib: f64,
    pub kernel: String,
    pub postgres: String,
    pub kafka: String,
    pub librdkafka: String,
}

impl Machine {
    pub async fn describe(sql: &Sql) -> Result<Self> {
        let memory_kib: f64 = field("/proc/meminfo", "MemTotal")
            .and_then(|value| value.strip_suffix(" kB")?.parse().ok())
            .unwrap_or_default();
        Ok(Self {
            cores: thread::available_parallelism()?.get(),
            processor: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            memory_gib: memory_kib / 1024.0 / 1024.0,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            postgres: sql.query_one("show server_version", &[]).await?.get(0),
            kafka: Kafka::VERSION.to_owned(),
            librdkafka: rdkafka::util::get_rdkafka_version().1,
        })
    }
}

/// Returns the first value of `name` in a file with lines `name: value`.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim().to_owned())
    })
}
