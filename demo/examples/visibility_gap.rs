//! Measures how long a new user is unknown to order-service: creates a user, places an order without
//! a token, and retries every millisecond until it is accepted. Prints percentiles over 200 users.
//!
//!     cargo build --release --workspace && cargo run --release -p demo --example visibility_gap

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use demo::System;
use tonic::Code;

const USERS: usize = 200;

#[tokio::main]
async fn main() -> Result<()> {
    // First without the short wait in order-service, which would hide the delay.
    for (title, unknown_user_wait_ms) in
        [("no wait in order-service", "0"), ("default wait", "250")]
    {
        let system = System::start_with(&[("UNKNOWN_USER_WAIT_MS", unknown_user_wait_ms)]).await?;
        // The first calls open connections.
        measure(&system, "warm").await?;
        let (mut took, rejected) = measure(&system, "run").await?;
        took.sort();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!(
            "{title}: {rejected} of {USERS} first attempts rejected; accepted after p50 {:.1} ms, \
             p99 {:.1} ms, at most {:.1} ms",
            at(50),
            at(99),
            at(100),
        );
        system.stop().await;
    }
    Ok(())
}

/// Returns the times from the response of CreateUser to the accepted CreateOrder, and the number of
/// rejected first attempts.
async fn measure(system: &System, run: &str) -> Result<(Vec<Duration>, usize)> {
    let mut took = Vec::new();
    let mut rejected = 0;
    for number in 0..USERS {
        let created = system
            .create_user(&format!("{run}{number}@example.com"), "N")
            .await?;
        let user_id = created.user.context("a user")?.user_id;
        let started = Instant::now();
        for attempt in 0.. {
            match system.create_order(&user_id, "").await {
                Ok(_) => break,
                Err(status) if status.code() == Code::FailedPrecondition => {
                    rejected += usize::from(attempt == 0);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
        took.push(started.elapsed());
    }
    Ok((took, rejected))
}
