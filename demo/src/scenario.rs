//! The scenario of the demo: orders, rejections, and a relay that is killed under load.

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
/// Orders that are placed while the relay is down.
const ORDERS_WITHOUT_RELAY: usize = 300;

pub(crate) async fn run(system: &mut System, steps: &mut Steps) -> Result<()> {
    let mut user_ids = Vec::new();
    steps
        .run(
            "Users are created, and their orders are accepted at once",
            create_users_and_orders(system, &mut user_ids),
        )
        .await?;
    steps
        .run(
            "An order for an unknown user is rejected with a reason",
            reject_unknown_user(system),
        )
        .await?;
    steps
        .run(
            "A rejected call lists every invalid field",
            reject_invalid_fields(system),
        )
        .await?;
    steps
        .run(
            "Orders are accepted while the relay is down",
            kill_relay(system, &user_ids),
        )
        .await?;
    steps
        .run("Every order has its event in Kafka", check_events(system))
        .await?;
    steps
        .run("Both services have caught up", check_projections(system))
        .await
}

async fn create_users_and_orders(system: &System, user_ids: &mut Vec<String>) -> Result<String> {
    let mut latencies = Vec::new();
    for number in 0..USERS {
        let email = format!("user{number}@example.com");
        let created = system
            .create_user(&email, &format!("User {number}"))
            .await?;
        let user_id = created.user.context("a created user")?.user_id;
        // order-service has probably not received this user's event yet. The token makes it wait.
        let started = Instant::now();
        let placed = system
            .create_order(&user_id, &created.consistency_token)
            .await?;
        latencies.push(started.elapsed());
        if number == 0 {
            let order_id = placed.order.context("a placed order")?.order_id;
            say(format!("user  {user_id} ({email})"));
            say(format!(
                "order {order_id}, placed with the consistency token from CreateUser"
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

async fn reject_unknown_user(system: &System) -> Result<String> {
    let nobody = Uuid::now_v7().to_string();
    let Err(status) = system.create_order(&nobody, "").await else {
        bail!("an order for an unknown user was accepted");
    };
    let reason = expect_rejection(&status, Code::FailedPrecondition, "USER_UNKNOWN")?;
    let details = status.get_error_details();
    let retry = details
        .retry_info()
        .context("no RetryInfo")?
        .retry_delay
        .unwrap_or_default();
    say(format!("{:?} {reason}", status.code()));
    say(status.message());
    say(format!(
        "retry after {} ms: the user's event may not have arrived yet",
        retry.as_millis()
    ));
    Ok(format!("{:?} {reason}", status.code()))
}

async fn reject_invalid_fields(system: &System) -> Result<String> {
    let request = CreateUserRequest {
        email: "no address".into(),
        ..Default::default()
    };
    let Err(user) = system.users().create_user(request).await else {
        bail!("a user without an email address was created");
    };
    let request = CreateOrderRequest {
        user_id: "nobody".into(),
        amount: Some(money("EUR", 1, 1)),
        ..Default::default()
    };
    let Err(order) = system.orders().create_order(request).await else {
        bail!("an order of 1.000000001 EUR was accepted");
    };
    let mut fields = Vec::new();
    for status in [user, order] {
        expect_rejection(&status, Code::InvalidArgument, "VALIDATION_FAILED")?;
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
        "wrong fields: {fields:?}"
    );
    Ok(format!("{} invalid fields in two calls", fields.len()))
}

async fn kill_relay(system: &mut System, user_ids: &[String]) -> Result<String> {
    let load = Load::start(system, user_ids);
    load.wait_accepted(100).await;
    let pid = system.stack.outbox_relay.pid().unwrap_or_default();
    say(format!("kill -9 {pid} (outbox-relay)"));
    system.stack.outbox_relay.kill_and_hold().await;
    load.wait_accepted(ORDERS_WITHOUT_RELAY).await;
    let (_, orders) = system.audit().await?;
    say(format!(
        "{ORDERS_WITHOUT_RELAY} more orders were accepted while the relay was down"
    ));
    say(format!(
        "{} events are pending in the outbox and not yet in Kafka",
        orders.lost
    ));
    ensure!(
        orders.lost >= ORDERS_WITHOUT_RELAY,
        "another process published the events: {orders}"
    );
    system.stack.outbox_relay.release().await;
    say("the relay was started again");
    load.wait_accepted(100).await;
    let placed = load.stop().await?;
    let slowest = placed.slowest.as_millis();
    Ok(format!(
        "{} orders accepted, the slowest in {slowest} ms",
        placed.order_ids.len()
    ))
}

async fn check_events(system: &System) -> Result<String> {
    let (users, orders) = system.wait_until_published().await?;
    say(format!("users:  {users}"));
    say(format!("orders: {orders}"));
    ensure!(
        Audit::is_clean(&users) && Audit::is_clean(&orders),
        "events are missing, unexpected or out of order"
    );
    Ok(format!(
        "{} orders, {} records, {} of them duplicates",
        orders.versions, orders.records, orders.repeated
    ))
}

async fn check_projections(system: &System) -> Result<String> {
    let counted = system.wait_until_projected().await?;
    let (users, cached) = (
        system.count("users").await?,
        system.count("users_cache").await?,
    );
    say(format!(
        "user-service counts {counted} orders, the same as order-service"
    ));
    say(format!(
        "order-service knows {cached} users, the same as user-service"
    ));
    ensure!(
        users == cached,
        "user-service has {users} users, order-service knows {cached}"
    );
    Ok(format!("{counted} orders counted, {cached} users known"))
}

/// Checks the code and the reason of a status, and returns the reason.
fn expect_rejection(status: &Status, code: Code, reason: &str) -> Result<String> {
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
