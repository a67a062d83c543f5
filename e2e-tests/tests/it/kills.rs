use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result};
use demo::{Load, System};
use devstack::{Process, eventually};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use proto::user::v1::CreateUserRequest;
use uuid::Uuid;

use crate::{assert_nothing_lost, at_last, known_users};

const KILLS: usize = 5;
/// The number of orders between two kills.
const ORDERS: usize = 60;
const USERS: usize = 400;
const AT_ONCE: usize = 8;

async fn killed_under_load(test: &str, part: impl Fn(&System) -> &Process) -> Result<()> {
    let system = System::start_on_shared_servers(test).await?;
    let user_ids = known_users(&system, 8).await?;
    let load = Load::start(&system, &user_ids);
    for _ in 0..KILLS {
        load.wait_accepted(ORDERS).await;
        part(&system).kill();
    }
    load.wait_accepted(ORDERS).await;
    let placed = load.stop().await?;
    assert_nothing_lost(&system, &placed.order_ids).await?;
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_relay_is_killed() -> Result<()> {
    killed_under_load("kill_relay", |system| &system.stack.outbox_relay).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_order_service_is_killed() -> Result<()> {
    killed_under_load("kill_orders", |system| &system.stack.order_service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_is_counted_once_when_user_service_is_killed() -> Result<()> {
    killed_under_load("kill_summaries", |system| &system.stack.user_service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_user_is_lost_or_created_twice_when_user_service_is_killed() -> Result<()> {
    let system = System::start_on_shared_servers("kill_users").await?;
    let (done, repeats) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let creating = stream::iter(0..USERS)
        .map(async |number| {
            let request = CreateUserRequest {
                email: format!("u{number}@example.com"),
                name: "U".into(),
                request_id: Uuid::new_v4().to_string(),
            };
            let calls = AtomicUsize::new(0);
            let create = async || {
                calls.fetch_add(1, Ordering::Relaxed);
                system.users().create_user(request.clone()).await
            };
            let created = at_last("a user", create).await?;
            done.fetch_add(1, Ordering::Relaxed);
            repeats.fetch_add(calls.into_inner() - 1, Ordering::Relaxed);
            anyhow::Ok(created.user.context("no user")?.user_id)
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<HashSet<String>>();
    let killing = async {
        for kill in 1..=KILLS {
            let share = USERS * kill / (KILLS + 1);
            let enough = async || Ok((done.load(Ordering::Relaxed) >= share).then_some(()));
            eventually("more users", enough).await?;
            system.stack.user_service.kill();
        }
        Ok(())
    };
    let (user_ids, ()) = tokio::try_join!(creating, killing)?;
    assert!(repeats.into_inner() > 0, "no call was cut off");
    assert_eq!(user_ids.len(), USERS);
    assert_nothing_lost(&system, &[]).await?;
    let users = i64::try_from(USERS)?;
    assert_eq!(system.count("users").await?, users);
    eventually("all users in the cache", async || {
        Ok((system.count("users_cache").await? == users).then_some(()))
    })
    .await?;
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_relay_is_suspended() -> Result<()> {
    let system = System::start_on_shared_servers("suspend_relay").await?;
    let user_ids = known_users(&system, 8).await?;
    let load = Load::start(&system, &user_ids);
    for _ in 0..3 {
        load.wait_accepted(ORDERS).await;
        system.stack.outbox_relay.suspend();
        // Longer than the delivery timeout of records.
        load.wait_accepted(5 * ORDERS).await;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        system.stack.outbox_relay.resume();
    }
    let placed = load.stop().await?;
    assert_nothing_lost(&system, &placed.order_ids).await?;
    system.stop().await;
    Ok(())
}
