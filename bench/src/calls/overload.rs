//! Measures ten times as many calls as the service can handle.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use demo::System;
use devstack::step;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};
use tonic::Code;

use super::{CallsOptions, Spread, histogram};

/// One database connection keeps the capacity low enough for this machine to generate ten times the
/// load.
const VARIABLES: [(&str, &str); 2] = [("DATABASE_POOL_SIZE", "1"), ("MAX_CALLS", "32")];
/// Concurrent callers in the capacity measurement, as many as `MAX_CALLS`.
const CALLERS: usize = 32;
const OVERLOAD_FACTOR: u64 = 10;
/// Limit of concurrent calls. Calls beyond it are counted as not made.
const MAX_IN_FLIGHT: usize = 2_000;
/// Calls are made in batches, this many per second: one timer per call would be late.
const BATCHES_PER_S: u64 = 200;

/// The figures. Orders and events are counted in the database.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    capacity_per_s: f64,
    at_capacity: Spread,
    offered_per_s: f64,
    not_made: u64,
    accepted_per_s: f64,
    accepted: Spread,
    shed_per_s: f64,
    shed: Spread,
    /// Calls with another error. There should be none.
    otherwise: u64,
    orders: i64,
    events: i64,
}

struct Counts {
    accepted: Histogram<u64>,
    shed: Histogram<u64>,
    otherwise: u64,
}

pub(super) async fn measure(options: &CallsOptions) -> Result<Figures> {
    let system = Arc::new(System::start_with(&VARIABLES).await?);
    let created = system.create_user("busy@example.com", "Busy").await?;
    let user_id = created.user.context("a user")?.user_id;
    system
        .create_order(&user_id, &created.consistency_token)
        .await?;
    let time = Duration::from_secs(options.seconds);
    let at_capacity = step(
        "calls at capacity",
        measure_capacity(&system, &user_id, time),
    )
    .await?;
    let capacity_per_s = at_capacity.len() as f64 / time.as_secs_f64();
    let offered = capacity_per_s as u64 * OVERLOAD_FACTOR;
    let (counts, not_made) = step(
        "calls at ten times the capacity",
        offer_load(&system, &user_id, offered, time),
    )
    .await?;
    // One order was placed before.
    let accepted = 1 + at_capacity.len() + counts.accepted.len();
    let (orders, events) = (system.count("orders").await?, system.count("outbox").await?);
    let figures = Figures {
        capacity_per_s,
        at_capacity: Spread::of(&at_capacity),
        offered_per_s: offered as f64,
        not_made,
        accepted_per_s: counts.accepted.len() as f64 / time.as_secs_f64(),
        accepted: Spread::of(&counts.accepted),
        shed_per_s: counts.shed.len() as f64 / time.as_secs_f64(),
        shed: Spread::of(&counts.shed),
        otherwise: counts.otherwise,
        orders,
        events,
    };
    if let Some(system) = Arc::into_inner(system) {
        system.stop().await;
    }
    ensure!(orders == events, "{orders} orders but {events} events");
    ensure!(
        orders as u64 >= accepted && orders as u64 <= accepted + counts.otherwise,
        "{accepted} orders were accepted, {orders} are in the database"
    );
    Ok(figures)
}

/// Measures callers that wait for their responses. No call is rejected.
async fn measure_capacity(
    system: &Arc<System>,
    user_id: &str,
    time: Duration,
) -> Result<Histogram<u64>> {
    let end = Instant::now() + time;
    let callers = (0..CALLERS).map(|_| {
        let (system, user_id) = (Arc::clone(system), user_id.to_owned());
        tokio::spawn(async move {
            let mut latency = histogram()?;
            while Instant::now() < end {
                let started = Instant::now();
                system.create_order(&user_id, "").await?;
                latency.saturating_record(started.elapsed().as_micros() as u64);
            }
            anyhow::Ok(latency)
        })
    });
    let mut all = histogram()?;
    for caller in callers.collect::<Vec<_>>() {
        all.add(caller.await??)?;
    }
    Ok(all)
}

/// Makes calls at a fixed rate, independent of responses. Also returns the number of calls not made.
async fn offer_load(
    system: &Arc<System>,
    user_id: &str,
    rate: u64,
    time: Duration,
) -> Result<(Counts, u64)> {
    let counts = Arc::new(Mutex::new(Counts {
        accepted: histogram()?,
        shed: histogram()?,
        otherwise: 0,
    }));
    let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let not_made = AtomicU64::new(0);
    let start = Instant::now();
    for batch in 0..time.as_secs() * BATCHES_PER_S {
        sleep_until(start + Duration::from_secs(1) * batch as u32 / BATCHES_PER_S as u32).await;
        for _ in 0..rate / BATCHES_PER_S {
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                not_made.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (system, user_id) = (Arc::clone(system), user_id.to_owned());
            let counts = Arc::clone(&counts);
            tokio::spawn(async move {
                let _permit = permit;
                let started = Instant::now();
                let answer = system.create_order(&user_id, "").await;
                let us = started.elapsed().as_micros() as u64;
                let mut counts = counts.lock();
                match answer {
                    Ok(_) => counts.accepted.saturating_record(us),
                    Err(status) if status.code() == Code::ResourceExhausted => {
                        counts.shed.saturating_record(us);
                    }
                    Err(_) => counts.otherwise += 1,
                }
            });
        }
    }
    // All calls have ended when all permits are free.
    let _all = permits.acquire_many(MAX_IN_FLIGHT as u32).await?;
    let counts = Arc::into_inner(counts).context("a call is still running")?;
    let counts = counts.into_inner();
    Ok((counts, not_made.into_inner()))
}

impl Figures {
    /// Formats the figures as Markdown.
    pub(super) fn table(&self) -> String {
        let row = |what: &str, per_s: f64, spread: &Spread| {
            format!(
                "| {what} | {per_s:.0} | {:.1} | {:.1} | {:.1} |\n",
                spread.p50_ms, spread.p99_ms, spread.max_ms
            )
        };
        format!(
            "| calls | calls/s | p50, ms | p99 | max |\n|---|---:|---:|---:|---:|\n{}{}{}\n\
             offered: {:.0} calls/s; not made: {}; other errors: {}; orders {}, events {}\n",
            row("at capacity", self.capacity_per_s, &self.at_capacity),
            row(
                "at ten times the capacity: accepted",
                self.accepted_per_s,
                &self.accepted
            ),
            row(
                "at ten times the capacity: rejected",
                self.shed_per_s,
                &self.shed
            ),
            self.offered_per_s,
            self.not_made,
            self.otherwise,
            self.orders,
            self.events,
        )
    }
}
