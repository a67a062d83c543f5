//! The scenario: what the system is for, and what happens when its relay is killed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use demo::{Load, System, money};
use devstack::Audit;
use proto::{order::v1::CreateOrderRequest, user::v1::CreateUserRequest};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::narrator::{Steps, say};

const USERS: usize = 20;
/// Orders that are placed while there is no relay.
const ORDERS_WITHOUT_RELAY: usize = 300;

pub(crate) async fn run(system: &mut System, told: &mut Steps) -> Result<()> {
    let mut user_ids = Vec::new();
    told.step(
        "Users are created, and order at once",
        order_at_once(system, &mut user_ids),
    )
    .await?;
    told.step(
        "An unknown user is rejected, and told why",
        reject_unknown(system),
    )
    .await?;
    told.step(
        "Everything that is wrong is told at once",
        reject_invalid(system),
    )
    .await?;
    told.step(
        "The relay is killed while orders flow",
        kill_relay(system, &user_ids),
    )
    .await?;
    told.step("Nothing was lost", nothing_lost(system)).await?;
    told.step("Nothing stayed behind", nothing_behind(system))
        .await
}

async fn order_at_once(system: &System, user_ids: &mut Vec<String>) -> Result<String> {
    let mut latencies = Vec::new();
    for number in 0..USERS {
        let email = format!("user{number}@example.com");
        let created = system
            .create_user(&email, &format!("User {number}"))
            .await?;
        let user_id = created.user.context("a created user")?.user_id;
        // At once: order-service can't have heard of this user yet. The token makes it wait.
        let started = Instant::now();
        let placed = system
            .create_order(&user_id, &created.consistency_token)
            .await?;
        latencies.push(started.elapsed());
        if number == 0 {
            let order_id = placed.order.context("a placed order")?.order_id;
            say(format!("user  {user_id} ({email})"));
            say(format!(
                "order {order_id}, with the consistency token of CreateUser"
            ));
        }
        user_ids.push(user_id);
    }
    latencies.sort();
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let (median, slowest) = (ms(latencies[USERS / 2]), ms(latencies[USERS - 1]));
    let text =
        format!("{USERS} of {USERS} accepted; median {median:.1} ms, slowest {slowest:.1} ms");
    say(&text);
    Ok(text)
}

async fn reject_unknown(system: &System) -> Result<String> {
    let nobody = Uuid::now_v7().to_string();
    let Err(status) = system.create_order(&nobody, "").await else {
        bail!("an order for a user that does not exist was accepted");
    };
    let reason = expect(&status, Code::FailedPrecondition, "USER_UNKNOWN")?;
    let details = status.get_error_details();
    let retry = details
        .retry_info()
        .context("no RetryInfo")?
        .retry_delay
        .unwrap_or_default();
    say(format!("{:?} {reason}", status.code()));
    say(status.message());
    say(format!(
        "retry after {} ms, for it may be lag",
        retry.as_millis()
    ));
    Ok(format!("{:?} {reason}", status.code()))
}

async fn reject_invalid(system: &System) -> Result<String> {
    let request = CreateUserRequest {
        email: "no address".into(),
        ..Default::default()
    };
    let Err(user) = system.users().create_user(request).await else {
        bail!("a user without an address was made");
    };
    let request = CreateOrderRequest {
        user_id: "nobody".into(),
        amount: Some(money("EUR", 1, 1)),
        ..Default::default()
    };
    let Err(order) = system.orders().create_order(request).await else {
        bail!("an order over a billionth of a euro was placed");
    };
    let mut fields = Vec::new();
    for status in [user, order] {
        expect(&status, Code::InvalidArgument, "VALIDATION_FAILED")?;
        let details = status.get_error_details();
        for violation in &details
            .bad_request()
            .context("no BadRequest")?
            .field_violations
        {
            say(format!("{}: {}", violation.field, violation.description));
            fields.push(violation.field.clone());
        }
    }
    ensure!(
        fields == ["email", "name", "user_id", "amount.nanos"],
        "named only {fields:?}"
    );
    Ok(format!("{} fields named in two calls", fields.len()))
}

async fn kill_relay(system: &mut System, user_ids: &[String]) -> Result<String> {
    let load = Load::start(system, user_ids);
    load.accept(100).await;
    let pid = system.stack.outbox_relay.pid().unwrap_or_default();
    say(format!("kill -9 {pid} (outbox-relay)"));
    system.stack.outbox_relay.kill_and_hold().await;
    load.accept(ORDERS_WITHOUT_RELAY).await;
    let (_, orders) = system.audit().await?;
    say(format!(
        "without a relay {ORDERS_WITHOUT_RELAY} more orders were accepted"
    ));
    say(format!(
        "their events wait in the outbox: {} records are missing in Kafka",
        orders.lost
    ));
    ensure!(
        orders.lost >= ORDERS_WITHOUT_RELAY,
        "somebody else published them: {orders}"
    );
    system.stack.outbox_relay.release().await;
    say("the relay is started again");
    load.accept(100).await;
    let placed = load.stop().await?;
    let slowest = placed.slowest.as_millis();
    Ok(format!(
        "{} orders accepted meanwhile, the slowest in {slowest} ms",
        placed.order_ids.len()
    ))
}

async fn nothing_lost(system: &System) -> Result<String> {
    let (users, orders) = system.wait_until_published().await?;
    say(format!("users:  {users}"));
    say(format!("orders: {orders}"));
    ensure!(
        Audit::is_clean(&users) && Audit::is_clean(&orders),
        "the topics are wrong"
    );
    Ok(format!(
        "{} orders, {} records, {} of them repeats",
        orders.versions, orders.records, orders.repeated
    ))
}

async fn nothing_behind(system: &System) -> Result<String> {
    let counted = system.wait_until_followed().await?;
    let (users, cached) = (
        system.count("users").await?,
        system.count("users_cache").await?,
    );
    say(format!(
        "user-service counts {counted} orders, as many as order-service has"
    ));
    say(format!(
        "order-service knows {cached} users, as many as user-service has"
    ));
    ensure!(users == cached, "{users} users, {cached} known");
    Ok(format!("{counted} orders counted, {cached} users known"))
}

/// The reason in a status, if it is the one expected.
fn expect(status: &Status, code: Code, reason: &str) -> Result<String> {
    let details = status.get_error_details();
    let found = details
        .error_info()
        .map(|info| info.reason.clone())
        .unwrap_or_default();
    ensure!(
        status.code() == code && found == reason,
        "{:?} {found}: {}",
        status.code(),
        status.message()
    );
    Ok(found)
}
