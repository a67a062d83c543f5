//! Ten times as many calls as can be done.

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

/// One connection to the database makes capacity small enough for the machine to offer ten times of
/// it, to itself.
const VARIABLES: [(&str, &str); 2] = [("DATABASE_POOL_SIZE", "1"), ("MAX_CALLS", "32")];
/// Callers of which each waits for its answer: as many as there is room for.
const CALLERS: usize = 32;
const TIMES: u64 = 10;
/// Calls without an answer at most: those beyond are not made, and counted.
const MAX_UNANSWERED: usize = 2_000;
/// Calls are made in heaps, so many a second: a timer for each would be late.
const HEAPS_PER_S: u64 = 200;

/// What was measured, and whether what is in the database agrees.
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
    /// Calls that ended otherwise, which none should.
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
        "as many calls as can be done",
        capacity(&system, &user_id, time),
    )
    .await?;
    let capacity_per_s = at_capacity.len() as f64 / time.as_secs_f64();
    let offered = capacity_per_s as u64 * TIMES;
    let (counts, not_made) =
        step("ten times as many", offer(&system, &user_id, offered, time)).await?;
    // One order came before.
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
    ensure!(
        orders == events,
        "half done: {orders} orders, {events} events"
    );
    ensure!(
        orders as u64 >= accepted && orders as u64 <= accepted + counts.otherwise,
        "{accepted} accepted, {orders} there"
    );
    Ok(figures)
}

/// Callers that wait for their answers: nobody is rejected.
async fn capacity(system: &Arc<System>, user_id: &str, time: Duration) -> Result<Histogram<u64>> {
    let end = Instant::now() + time;
    let callers = (0..CALLERS).map(|_| {
        let (system, user_id) = (Arc::clone(system), user_id.to_owned());
        tokio::spawn(async move {
            let mut latency = histogram()?;
            while Instant::now() < end {
                let asked = Instant::now();
                system.create_order(&user_id, "").await?;
                latency.saturating_record(asked.elapsed().as_micros() as u64);
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

/// Calls at a rate that does not heed answers.
async fn offer(
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
    let places = Arc::new(Semaphore::new(MAX_UNANSWERED));
    let not_made = AtomicU64::new(0);
    let start = Instant::now();
    for heap in 0..time.as_secs() * HEAPS_PER_S {
        sleep_until(start + Duration::from_secs(1) * heap as u32 / HEAPS_PER_S as u32).await;
        for _ in 0..rate / HEAPS_PER_S {
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                not_made.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (system, user_id) = (Arc::clone(system), user_id.to_owned());
            let counts = Arc::clone(&counts);
            tokio::spawn(async move {
                let _place = place;
                let asked = Instant::now();
                let answer = system.create_order(&user_id, "").await;
                let us = asked.elapsed().as_micros() as u64;
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
    // All of them have ended when all places are free.
    let _all = places.acquire_many(MAX_UNANSWERED as u32).await?;
    let counts = Arc::into_inner(counts).context("a call goes on")?;
    let counts = counts.into_inner();
    Ok((counts, not_made.into_inner()))
}

impl Figures {
    /// For people, in Markdown.
    pub(super) fn table(&self) -> String {
        let row = |what: &str, per_s: f64, spread: &Spread| {
            format!(
                "| {what} | {per_s:.0} | {:.1} | {:.1} | {:.1} |\n",
                spread.p50_ms, spread.p99_ms, spread.max_ms
            )
        };
        format!(
            "| calls | a second | p50, ms | p99 | max |\n|---|---:|---:|---:|---:|\n{}{}{}\n\
             offered: {:.0} a second; not made: {}; ended otherwise: {}; orders {}, events {}\n",
            row(
                "as many as can be done",
                self.capacity_per_s,
                &self.at_capacity
            ),
            row(
                "ten times as many: accepted",
                self.accepted_per_s,
                &self.accepted
            ),
            row("ten times as many: shed", self.shed_per_s, &self.shed),
            self.offered_per_s,
            self.not_made,
            self.otherwise,
            self.orders,
            self.events,
        )
    }
}
