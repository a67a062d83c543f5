use anyhow::Result;
use demo::{Load, System};
use devstack::Process;

use crate::{assert_nothing_lost, known_users};

const KILLS: usize = 5;
/// Orders between two kills.
const ORDERS: usize = 60;

async fn killed_under_load(test: &str, part: impl Fn(&System) -> &Process) -> Result<()> {
    let system = System::start_on_shared_servers(test).await?;
    let user_ids = known_users(&system, 8).await?;
    let load = Load::start(&system, &user_ids);
    for _ in 0..KILLS {
        load.accept(ORDERS).await;
        part(&system).kill();
    }
    load.accept(ORDERS).await;
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
async fn nothing_is_lost_when_user_service_is_killed() -> Result<()> {
    killed_under_load("kill_users", |system| &system.stack.user_service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_relay_is_suspended() -> Result<()> {
    let system = System::start_on_shared_servers("suspend_relay").await?;
    let user_ids = known_users(&system, 8).await?;
    let load = Load::start(&system, &user_ids);
    for _ in 0..3 {
        load.accept(ORDERS).await;
        system.stack.outbox_relay.suspend();
        // Longer than records may be on their way.
        load.accept(5 * ORDERS).await;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        system.stack.outbox_relay.resume();
    }
    let placed = load.stop().await?;
    assert_nothing_lost(&system, &placed.order_ids).await?;
    system.stop().await;
    Ok(())
}
