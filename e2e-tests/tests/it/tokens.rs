//! A caller with a consistency token never gets USER_UNKNOWN, whatever is killed meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use demo::{System, money};
use devstack::{Process, eventually};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use proto::{order::v1::CreateOrderRequest, user::v1::CreateUserRequest};
use uuid::Uuid;

use crate::at_last;

const PAIRS: usize = 500;
const AT_ONCE: usize = 8;
const PARTS: usize = 3;
/// Kills of each process.
const KILLS: usize = 3;

/// Creates a user and orders for it at once; returns the order's id.
async fn create_then_order(system: &System, number: usize) -> Result<String> {
    let request = CreateUserRequest {
        email: format!("u{number}@example.com"),
        name: "U".into(),
        request_id: Uuid::new_v4().to_string(),
    };
    let create = async || system.users().create_user(request.clone()).await;
    let created = at_last("a user", create).await?;
    let request = CreateOrderRequest {
        user_id: created.user.context("no user")?.user_id,
        amount: Some(money("EUR", 1, 0)),
        consistency_token: created.consistency_token,
        request_id: Uuid::new_v4().to_string(),
    };
    let place = async || system.orders().create_order(request.clone()).await;
    let placed = at_last("an order", place).await?;
    Ok(placed.order.context("no order")?.order_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_never_leads_to_an_unknown_user_whatever_is_killed() -> Result<()> {
    let system = System::start_on_shared_servers("pairs").await?;
    let done = AtomicUsize::new(0);
    let pairs = stream::iter(0..PAIRS)
        .map(async |number| {
            let order_id = create_then_order(&system, number).await;
            done.fetch_add(1, Ordering::Relaxed);
            order_id
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<String>>();
    let killing = async {
        for kill in 1..=PARTS * KILLS {
            let share = PAIRS * kill / (PARTS * KILLS + 1);
            let enough = async || Ok((done.load(Ordering::Relaxed) >= share).then_some(()));
            eventually("more orders", enough).await?;
            let stack = &system.stack;
            let parts: [&Process; PARTS] = [
                &stack.outbox_relay,
                &stack.order_service,
                &stack.user_service,
            ];
            parts[kill % PARTS].kill();
        }
        Ok(())
    };
    let (order_ids, ()) = tokio::try_join!(pairs, killing)?;
    ensure!(order_ids.len() == PAIRS, "{} orders", order_ids.len());
    super::assert_nothing_lost(&system, &order_ids).await?;
    let pairs = i64::try_from(PAIRS)?;
    for table in ["users", "users_cache", "orders"] {
        assert_eq!(system.count(table).await?, pairs, "{table}");
    }
    system.stop().await;
    Ok(())
}
