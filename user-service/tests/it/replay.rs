//! A replay of all order events.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use devstack::{Addresses, NewRecord};
use proto::events::{ORDER_CREATED, Order, OrderState, header};
use uuid::Uuid;

use crate::{
    harness::TestService,
    summaries::{cancelled, order},
};

const ORDERS: usize = 600;
const USERS: u128 = 7;
/// The number of processed records, in all partitions.
const SEEN: &str = "select sum(next_offset) from projection_offsets";

/// By user and currency: orders, cancelled orders, and the total of the others in minor units.
type Summaries = BTreeMap<(String, String), (i64, i64, i64)>;

async fn summaries(service: &TestService) -> Result<Summaries> {
    let query =
        "select user_id::text, currency, order_count, cancelled_count, (total * 100)::bigint
                 from user_order_summaries";
    let rows = service.sql.query(query, &[]).await?;
    let rows = rows.iter().map(|row| {
        let of = (row.get(0), row.get(1));
        (of, (row.get(2), row.get(3), row.get(4)))
    });
    Ok(rows.collect())
}

/// Returns the summaries of the latest version of each order.
fn latest_summaries(history: &[Order]) -> Result<Summaries> {
    let mut newest = BTreeMap::new();
    for order in history {
        let kept = newest.entry(order.order_id).or_insert(order);
        if order.version > kept.version {
            *kept = order;
        }
    }
    let mut summaries = Summaries::new();
    for order in newest.into_values() {
        let of = (order.user_id.to_string(), order.currency.clone());
        let (count, cancelled, total) = summaries.entry(of).or_default();
        *count += 1;
        if order.state == OrderState::Cancelled {
            *cancelled += 1;
        } else {
            let (units, cents) = order.amount.split_once('.').context("an amount")?;
            *total += units.parse::<i64>()? * 100 + cents.parse::<i64>()?;
        }
    }
    Ok(summaries)
}

/// Returns orders of some users in two currencies; every third order is cancelled.
fn versions() -> Result<Vec<Order>> {
    let mut history = Vec::new();
    for number in 0..ORDERS {
        let user_id = Uuid::from_u128(number as u128 % USERS).to_string();
        let currency = if number % 2 == 0 { "EUR" } else { "USD" };
        let amount = format!("{number}.{:02}", number % 100);
        history.push(order(&user_id, &amount, currency)?);
    }
    let cancelled: Vec<_> = history.iter().step_by(3).map(cancelled).collect();
    history.extend(cancelled);
    Ok(history)
}

async fn publish_all(service: &TestService, orders: &[Order]) -> Result<()> {
    let payloads: Result<Vec<_>> = (orders.iter())
        .map(|order| Ok((order.order_id.to_string(), serde_json::to_vec(order)?)))
        .collect();
    let payloads = payloads?;
    let records = payloads.iter().map(|(key, payload)| NewRecord {
        key: Some(key.as_bytes()),
        payload: Some(payload),
        headers: &[(header::SPEC_VERSION, "1.0"), (header::TYPE, ORDER_CREATED)],
        ..NewRecord::default()
    });
    let records: Vec<_> = records.collect();
    let servers = Addresses::shared();
    servers.write_records(&service.name, &records).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_duplicate_and_stale_records_counts_each_order_once() -> Result<()> {
    let service = TestService::start("replay").await?;
    let mut history = versions()?;
    // Every tenth record again: some are stale by then.
    history.extend(history.clone().into_iter().step_by(10));
    publish_all(&service, &history).await?;
    service.sql.wait_for(SEEN, history.len() as i64).await?;
    assert_eq!(summaries(&service).await?, latest_summaries(&history)?);

    // Reset the offsets while more orders are cancelled.
    let from_the_beginning = "update projection_offsets set next_offset = 0";
    service.sql.batch_execute(from_the_beginning).await?;
    let more: Vec<Order> = history[1..ORDERS]
        .iter()
        .step_by(3)
        .map(cancelled)
        .collect();
    publish_all(&service, &more).await?;
    let first = history.len() as i64;
    history.extend(more);
    service.sql.wait_for(SEEN, history.len() as i64).await?;
    assert_eq!(summaries(&service).await?, latest_summaries(&history)?);
    // Each record of the first run was applied twice; none was lost or dead-lettered.
    let applied = "select sum(applied) from projection_offsets";
    let applied = service.sql.count(applied).await?;
    assert_eq!(applied, first + history.len() as i64);
    service.stop().await
}
