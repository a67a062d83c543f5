//! One measurement of the relay, from server start to report.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use lab::{Backlog, Installation, Lab, Machine, PAYLOAD_BYTES, Relay, WalLevel};

use crate::{
    curves,
    debezium::{Connector, Tuning},
    drain::{self, Drain},
    latency::{self, Idle, Latency},
    limits::{self, Limit},
    options::RelayOptions,
    postgres_use::{self, Statements},
    report::{DebeziumFigures, DrainFigures, LimitFigures, Report},
    tables,
};

/// Runs the measurement, prints the tables and writes the files.
pub(crate) async fn run(options: &RelayOptions) -> Result<()> {
    let wal_level = if options.debezium {
        WalLevel::Logical
    } else {
        WalLevel::Replica
    };
    let lab = Lab::start(wal_level).await?;
    let report = measure(&lab, options).await;
    lab.stop().await;
    let report = report?;
    println!("{}", tables::text(&report));
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("failed to write {}", path.display()))?;
    }
    if let Some(path) = &options.markdown {
        fs::write(path, tables::markdown(&report))
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

async fn measure(lab: &Lab, options: &RelayOptions) -> Result<Report> {
    let default_sink = options.sinks.first().context("no sink")?;
    let connector = match options.debezium {
        true => Some(Connector::prepare(lab).await?),
        false => None,
    };
    lab.write_backlog(&Backlog {
        rows: options.rows,
        payload_bytes: PAYLOAD_BYTES,
        further_headers: 0,
    })
    .await?;
    // The broker's JVM compiles code while it runs. A first, unmeasured run keeps that out of the figures.
    eprintln!("warm-up");
    Runs::default().add(lab, options, None).await?;
    let mut runs = Runs::default();
    for number in 1..=options.runs {
        eprintln!("run {number} of {}", options.runs);
        runs.add(lab, options, connector.as_ref()).await?;
    }
    if let Some(connector) = &connector {
        connector.drop_slots(lab).await?;
    }
    let (latency, statements, idle) = relay_latency(lab, default_sink, options).await?;
    let debezium = match &connector {
        Some(connector) => Some(DebeziumFigures {
            version: Installation::VERSION,
            tuned: runs.drain_figures(Tuning::Drain.name())?,
            with_defaults: runs.drain_figures(Tuning::Defaults.name())?,
            latency: debezium_latency(lab, connector, options).await?,
        }),
        None => None,
    };
    let curves = match options.curves {
        Some(reach) => curves::measure(lab, default_sink, reach).await?,
        None => Vec::new(),
    };
    Ok(Report {
        measured_at: chrono::Local::now().format("%Y-%m-%d").to_string(),
        machine: Machine::describe(&lab.sql().await?).await?,
        rows: options.rows,
        payload_bytes: PAYLOAD_BYTES,
        runs: options.runs,
        drain: runs.drain_figures(&program(default_sink))?,
        drain_rdkafka: runs.drain_figures(&program("rdkafka")).ok(),
        limits: LimitFigures::of(&runs.reading, &runs.producing)?,
        latency,
        statements,
        idle,
        debezium,
        curves,
    })
}

/// The interleaved runs. A change in the machine's speed then affects all programs.
#[derive(Default)]
struct Runs {
    drains: BTreeMap<String, Vec<Drain>>,
    reading: Vec<Limit>,
    producing: Vec<Limit>,
}

impl Runs {
    /// Adds one run of each program.
    async fn add(
        &mut self,
        lab: &Lab,
        options: &RelayOptions,
        connector: Option<&Connector>,
    ) -> Result<()> {
        let rows = options.rows;
        for sink in &options.sinks {
            let drain = drain::by_relay(lab, rows, sink).await?;
            self.drains.entry(program(sink)).or_default().push(drain);
        }
        if let Some(connector) = connector {
            for tuning in [Tuning::Drain, Tuning::Defaults] {
                let drain = connector.drain(lab, rows, tuning).await?;
                let name = tuning.name().to_owned();
                self.drains.entry(name).or_default().push(drain);
            }
        }
        self.reading.push(limits::measure_read(lab, rows).await?);
        let producing = limits::measure_produce(lab, rows, PAYLOAD_BYTES).await?;
        self.producing.push(producing);
        Ok(())
    }

    fn drain_figures(&self, program: &str) -> Result<DrainFigures> {
        let runs = self
            .drains
            .get(program)
            .context("program was not measured")?;
        DrainFigures::of(program, runs)
    }
}

fn program(sink: &str) -> String {
    format!("outbox-relay, {sink} sink")
}

/// Measures the latency at each rate, then the CPU of the idle relay.
async fn relay_latency(
    lab: &Lab,
    sink: &str,
    options: &RelayOptions,
) -> Result<(Vec<Latency>, Statements, Idle)> {
    lab.truncate_outbox().await?;
    lab.topic.recreate().await?;
    postgres_use::reset_statements(lab).await?;
    let relay = Relay::start(lab, sink).await?;
    relay.wait_ready().await?;
    let latency = latency_at_rates(lab, relay.pid(), options).await?;
    let statements = postgres_use::relay_statements(lab).await?;
    let idle = latency::measure_idle(lab, relay.pid()).await?;
    relay.stop().await?;
    Ok((latency, statements, idle))
}

async fn debezium_latency(
    lab: &Lab,
    connector: &Connector,
    options: &RelayOptions,
) -> Result<Vec<Latency>> {
    lab.truncate_outbox().await?;
    let running = connector.restart(lab, Tuning::Latency).await?;
    let latency = latency_at_rates(lab, running.pid(), options).await?;
    running.stop().await?;
    connector.drop_slots(lab).await?;
    Ok(latency)
}

async fn latency_at_rates(
    lab: &Lab,
    publisher: u32,
    options: &RelayOptions,
) -> Result<Vec<Latency>> {
    latency::warm_up(lab, publisher).await?;
    let mut latencies = Vec::new();
    for rate in &options.rates {
        latencies.push(latency::measure(lab, publisher, *rate, options.seconds).await?);
    }
    Ok(latencies)
}
