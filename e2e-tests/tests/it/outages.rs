//! Outages of Postgres and Kafka. Each test has its own servers, to not affect other tests.

use anyhow::{Context as _, Result};
use demo::{Load, System};
use devstack::{Process, eventually};
use futures_util::future::try_join_all;
use proto::{order::v1::ListOrdersRequest, user::v1::GetUserRequest};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::{assert_nothing_lost, known_users};

/// Waits until both services report this health as a whole.
async fn wait_for_health(system: &System, expected: ServingStatus) -> Result<()> {
    let names = system.stack.names();
    let asking = [&names.user_service_addr, &names.order_service_addr].map(async |addr| {
        let endpoint = Channel::from_shared(format!("http://{addr}"))?.connect_lazy();
        eventually(&format!("{expected:?} of {addr}"), async || {
            let request = HealthCheckRequest::default();
            let answer = HealthClient::new(endpoint.clone()).check(request).await;
            let said = answer.is_ok_and(|answer| answer.get_ref().status() == expected);
            Ok(said.then_some(()))
        })
        .await
    });
    try_join_all(asking).await?;
    Ok(())
}

/// Returns the Postgres process. These systems have their own servers.
#[expect(clippy::unwrap_used)]
fn postgres(system: &mut System) -> &mut Process {
    &mut system.servers.as_mut().unwrap().postgres.process
}

async fn stop_and_restart(server: impl Fn(&mut System) -> &mut Process) -> Result<()> {
    let mut system = System::start().await?;
    let user_ids = known_users(&system, 8).await?;
    wait_for_health(&system, ServingStatus::Serving).await?;
    let load = Load::start(&system, &user_ids);
    load.wait_accepted(100).await;
    server(&mut system).kill_and_hold().await;
    wait_for_health(&system, ServingStatus::NotServing).await?;
    server(&mut system).release().await;
    wait_for_health(&system, ServingStatus::Serving).await?;
    load.wait_accepted(100).await;
    let placed = load.stop().await?;
    assert_nothing_lost(&system, &placed.order_ids).await?;
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_kafka_is_killed_and_health_reports_it() -> Result<()> {
    stop_and_restart(|system| &mut system.servers.as_mut().unwrap().kafka.process).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_postgres_is_killed_and_health_reports_it() -> Result<()> {
    stop_and_restart(postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_delays_during_a_postgres_outage_lead_to_success() -> Result<()> {
    let mut system = System::start().await?;
    let user_ids = known_users(&system, 1).await?;
    let user_id = &user_ids[0];
    postgres(&mut system).kill_and_hold().await;
    let get_user = GetUserRequest {
        user_id: user_id.clone(),
    };
    let list_orders = ListOrdersRequest {
        user_id: user_id.clone(),
        ..ListOrdersRequest::default()
    };
    for rejected in [
        system.create_user("late@example.com", "L").await.err(),
        system.create_order(user_id, "").await.err(),
        system.users().get_user(get_user).await.err(),
        system.orders().list_orders(list_orders).await.err(),
    ] {
        let status = rejected.context("a call succeeded without Postgres")?;
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        assert_eq!(reason, Some("DATABASE_UNAVAILABLE"), "{status:?}");
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        assert!(delay.is_some_and(|delay| !delay.is_zero()), "{status:?}");
    }
    postgres(&mut system).release().await;
    // A client that retries after each given delay succeeds.
    eventually("a user", async || {
        let Err(status) = system.create_user("late@example.com", "L").await else {
            return Ok(Some(()));
        };
        let delay = (status.get_error_details().retry_info()).and_then(|info| info.retry_delay);
        tokio::time::sleep(delay.with_context(|| format!("{status:?}"))?).await;
        Ok(None)
    })
    .await?;
    assert_eq!(system.count("users").await?, 2);
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_accepted_during_a_kafka_outage() -> Result<()> {
    let mut system = System::start().await?;
    let user_ids = known_users(&system, 4).await?;
    system
        .servers
        .as_mut()
        .unwrap()
        .kafka
        .process
        .kill_and_hold()
        .await;
    let mut accepted = Vec::new();
    for user_id in user_ids.iter().cycle().take(100) {
        let placed = system.create_order(user_id, "").await?;
        accepted.push(placed.order.unwrap_or_default().order_id);
    }
    system
        .servers
        .as_mut()
        .unwrap()
        .kafka
        .process
        .release()
        .await;
    assert_nothing_lost(&system, &accepted).await?;
    system.stop().await;
    Ok(())
}
