//! End-to-end tests: the whole system in real processes, also while parts of it are killed.

mod asyncapi;
mod background;
mod compacting;
mod compaction;
mod databases;
mod deletions;
mod erasure;
mod error_table;
mod evolution;
mod golden;
mod kills;
mod notations;
mod orders;
mod outages;
mod tokens;
mod traces;
mod validation;

use anyhow::{Result, bail};
use demo::System;
use devstack::eventually;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

/// Creates users that order-service already knows.
async fn known_users(system: &System, count: usize) -> Result<Vec<String>> {
    let mut user_ids = Vec::new();
    for number in 0..count {
        let created = system
            .create_user(&format!("u{number}@example.com"), "U")
            .await?;
        let user_id = created.user.unwrap_or_default().user_id;
        system
            .create_order(&user_id, &created.consistency_token)
            .await?;
        user_ids.push(user_id);
    }
    Ok(user_ids)
}

/// Retries a call with its request id while the service is unavailable. A status without details comes from the
/// client and not from the service: the connection broke.
async fn at_last<T>(what: &str, call: impl AsyncFn() -> Result<Response<T>, Status>) -> Result<T> {
    let answer = async || match call().await {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if status.code() == Code::Unavailable => Ok(None),
        Err(status) if status.get_details_error_info().is_none() => Ok(None),
        Err(status) => bail!("{what}: {status:?}"),
    };
    eventually(what, answer).await
}

/// Checks that every accepted order exists, every outbox row has its record and no record is extra, records are in
/// order, and user-service has counted each order once.
async fn assert_nothing_lost(system: &System, accepted: &[String]) -> Result<()> {
    let (users, orders) = system.wait_until_published().await?;
    assert!(users.is_clean(), "users: {users}");
    assert!(orders.is_clean(), "orders: {orders}");
    let placed = system.order_ids().await?;
    let missing: Vec<&String> = accepted.iter().filter(|id| !placed.contains(*id)).collect();
    assert!(missing.is_empty(), "accepted but lost: {missing:?}");
    let counted = system.wait_until_projected().await?;
    assert_eq!(counted, i64::try_from(placed.len())?);
    println!("users: {users}; orders: {orders}");
    Ok(())
}
