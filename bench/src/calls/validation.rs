//! Compares the modes of validating that a user exists.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use demo::System;
use devstack::{Fault, Proxy, step};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use tonic_types::StatusExt as _;

use super::{CallsOptions, Spread};

const MODES: [&str; 3] = ["local", "local-then-remote", "remote"];
/// Delay in each direction to a slow user-service.
const SLOW_DELAY: Duration = Duration::from_millis(100);
const SLOW: Fault = Fault::Delay {
    to_server: SLOW_DELAY,
    to_client: SLOW_DELAY,
};
const CONDITIONS: [(&str, Fault); 3] =
    [("up", Fault::None), ("slow", SLOW), ("down", Fault::Refuse)];
const KNOWN_USERS: usize = 50;
/// One in this many orders is for a user created right before it.
const NEW_USER_EVERY: u64 = 5;

/// The figures of one mode under one condition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    mode: &'static str,
    user_service: &'static str,
    known: Outcome,
    new: Outcome,
}

/// The results of first attempts to place an order without a consistency token.
#[derive(Clone, Debug, Serialize)]
struct Outcome {
    orders: u64,
    accepted_percent: f64,
    latency: Spread,
    rejected: BTreeMap<String, u64>,
}

/// The counts during a measurement.
struct Count {
    latency: Histogram<u64>,
    accepted: u64,
    rejected: BTreeMap<String, u64>,
}

impl Count {
    fn new() -> Result<Self> {
        Ok(Self {
            latency: Histogram::new_with_max(60_000_000, 3)?,
            accepted: 0,
            rejected: BTreeMap::new(),
        })
    }

    fn outcome(&self) -> Outcome {
        let orders = self.latency.len();
        Outcome {
            orders,
            accepted_percent: self.accepted as f64 / orders.max(1) as f64 * 100.0,
            latency: Spread::of(&self.latency),
            rejected: self.rejected.clone(),
        }
    }
}

pub(super) async fn measure(options: &CallsOptions) -> Result<Vec<Figures>> {
    let mut figures = Vec::new();
    for mode in MODES {
        let proxy = Proxy::bind().await?;
        let addr = proxy.address();
        let variables = [("VALIDATION", mode), ("USER_SERVICE_ADDR", addr.as_str())];
        let system = Arc::new(System::start_with(&variables).await?);
        proxy.set_target(&system.stack.names().user_service_addr);
        let users = create_known_users(&system).await?;
        for condition in CONDITIONS {
            let what = format!("{mode}, user-service {}", condition.0);
            let measuring = measure_condition(&system, mode, condition, &proxy, &users, options);
            figures.push(step(&what, measuring).await?);
        }
        if let Some(system) = Arc::into_inner(system) {
            system.stop().await;
        }
    }
    Ok(figures)
}

async fn create_known_users(system: &System) -> Result<Vec<String>> {
    let mut users = Vec::new();
    for number in 0..KNOWN_USERS {
        let created = system
            .create_user(&format!("known{number}@example.com"), "Known")
            .await?;
        let user_id = created.user.context("a user")?.user_id;
        system
            .create_order(&user_id, &created.consistency_token)
            .await?;
        users.push(user_id);
    }
    Ok(users)
}

/// Places orders at a steady rate, independent of responses.
async fn measure_condition(
    system: &Arc<System>,
    mode: &'static str,
    (user_service, fault): (&'static str, Fault),
    proxy: &Proxy,
    users: &[String],
    options: &CallsOptions,
) -> Result<Figures> {
    proxy.set(fault).await?;
    // order-service notices a closed connection.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let counts = Arc::new(Mutex::new((Count::new()?, Count::new()?)));
    let start = Instant::now();
    let mut calls = Vec::new();
    for number in 0..options.rate * options.seconds {
        tokio::time::sleep_until(
            start + Duration::from_secs(1) * number as u32 / options.rate as u32,
        )
        .await;
        let (system, counts) = (Arc::clone(system), Arc::clone(&counts));
        let is_new = number % NEW_USER_EVERY == 0;
        let known = users[number as usize % users.len()].clone();
        let email = format!("{mode}{user_service}{number}@example.com");
        calls.push(tokio::spawn(async move {
            let user_id = if is_new {
                let created = system.create_user(&email, "New").await?;
                created.user.context("a user")?.user_id
            } else {
                known
            };
            let started = Instant::now();
            let answer = system.create_order(&user_id, "").await;
            let us = started.elapsed().as_micros() as u64;
            let mut counts = counts.lock();
            let count = if is_new { &mut counts.1 } else { &mut counts.0 };
            count.latency.saturating_record(us);
            match answer {
                Ok(_) => count.accepted += 1,
                Err(status) => {
                    let info = status.get_error_details().error_info().cloned();
                    let reason = info.map_or_else(|| status.code().to_string(), |info| info.reason);
                    *count.rejected.entry(reason).or_default() += 1;
                }
            }
            anyhow::Ok(())
        }));
    }
    for call in calls {
        call.await??;
    }
    let counts = counts.lock();
    Ok(Figures {
        mode,
        user_service,
        known: counts.0.outcome(),
        new: counts.1.outcome(),
    })
}

/// Formats the figures as Markdown.
pub(super) fn table(figures: &[Figures]) -> String {
    let mut text = String::from(
        "| validation | user-service | known users: accepted | p50, ms | p99 | new users: accepted at first attempt | p50, ms | p99 | rejected |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---|\n",
    );
    for Figures {
        mode,
        user_service,
        known,
        new,
    } in figures
    {
        let mut rejected = known.rejected.clone();
        for (reason, count) in &new.rejected {
            *rejected.entry(reason.clone()).or_default() += count;
        }
        let rejected: Vec<_> = rejected
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let _ = writeln!(
            text,
            "| {mode} | {user_service} | {:.1} % | {:.1} | {:.1} | {:.1} % | {:.1} | {:.1} | {} |",
            known.accepted_percent,
            known.latency.p50_ms,
            known.latency.p99_ms,
            new.accepted_percent,
            new.latency.p50_ms,
            new.latency.p99_ms,
            rejected.join(", "),
        );
    }
    text
}
