//! The validation modes of CreateOrder.

use std::time::SystemTime;

use anyhow::{Context as _, Error, Result};
use demo::{System, money};
use devstack::{Addresses, Proxy, Sql, eventually};
use proto::{
    events::{self, header},
    order::v1::{CreateOrderRequest, CreateOrderResponse},
    user::v1::User,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::known_users;

const MODES: [&str; 3] = ["local", "local-then-remote", "remote"];

async fn start(mode: &str) -> Result<System> {
    let test = mode.replace('-', "_");
    System::start_on_shared_servers_with(&test, &[("VALIDATION", mode)]).await
}

async fn new_user(system: &System, number: usize) -> Result<(String, String)> {
    let email = format!("new{number}@example.com");
    let created = system.create_user(&email, "New").await?;
    let user_id = created.user.context("a user")?.user_id;
    Ok((user_id, created.consistency_token))
}

#[track_caller]
fn assert_rejected(answer: Result<CreateOrderResponse, Status>, code: Code, reason: &str) {
    let status = answer.expect_err("the call was accepted");
    let info = status.get_details_error_info().expect("no ErrorInfo");
    assert_eq!((status.code(), &*info.reason), (code, reason));
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_validation_accepts_an_order_of_an_unknown_user_at_once() -> Result<()> {
    for mode in &MODES[1..] {
        let mut system = start(mode).await?;
        // No events arrive from here on.
        system.stack.outbox_relay.kill_and_hold().await;
        let (user_id, token) = new_user(&system, 1).await?;
        system.create_order(&user_id, "").await?;
        system.create_order(&user_id, &token).await?;
        // The response is not cached: only events write users_cache.
        assert_eq!(system.count("users_cache").await?, 0, "{mode}");
        let nobody = Uuid::now_v7().to_string();
        let rejected = system.create_order(&nobody, "").await;
        assert_rejected(rejected, Code::FailedPrecondition, "USER_UNKNOWN");
        let gone = system.delete_user(&user_id).await?;
        for token in ["", &token, &gone.consistency_token] {
            let rejected = system.create_order(&user_id, token).await;
            assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
        }
        assert_eq!(system.count("orders").await?, 2, "{mode}");
        assert_eq!(system.count("users_cache").await?, 0, "{mode}");
        // Once the deletion arrives, the earlier orders are cancelled like all others.
        system.stack.outbox_relay.release().await;
        wait_until_none_is_open(&system).await?;
        super::assert_nothing_lost(&system, &[]).await?;
        system.stop().await;
    }
    Ok(())
}

async fn wait_until_none_is_open(system: &System) -> Result<()> {
    let sql = Sql::connect(&system.stack.names().orders_database_url).await?;
    let cancelled = "select count(*) from users_cache
                     where deleted and not exists (select from orders where state = 'created')";
    sql.wait_for(cancelled, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn known_users_can_order_during_a_user_service_outage_unless_validation_is_remote()
-> Result<()> {
    for mode in MODES {
        let mut system = start(mode).await?;
        let user_id = known_users(&system, 1).await?.remove(0);
        let sql = Sql::connect(&system.stack.names().orders_database_url).await?;
        let known = "select count(*) from users_cache";
        sql.wait_for(known, 1).await?;
        let repeatable = CreateOrderRequest {
            user_id: user_id.clone(),
            amount: Some(money("EUR", 1, 0)),
            request_id: Uuid::new_v4().to_string(),
            ..CreateOrderRequest::default()
        };
        let first = system.orders().create_order(repeatable.clone()).await?;
        system.stack.user_service.kill_and_hold().await;
        let answer = system.create_order(&user_id, "").await;
        let nobody = system.create_order(&Uuid::now_v7().to_string(), "").await;
        if mode == "remote" {
            assert_rejected(answer, Code::Unavailable, "USER_SERVICE_UNAVAILABLE");
            assert_rejected(nobody, Code::Unavailable, "USER_SERVICE_UNAVAILABLE");
        } else {
            answer?;
            assert_rejected(nobody, Code::FailedPrecondition, "USER_UNKNOWN");
        }
        // A retry gets the stored response in every mode.
        let again = system.orders().create_order(repeatable.clone()).await?;
        assert_eq!(again.get_ref(), first.get_ref(), "{mode}");
        system.stack.user_service.release().await;
        let back = async || match system.create_order(&user_id, "").await {
            Err(status) if status.code() == Code::Unavailable => Ok(None),
            answer => Ok(Some(answer?)),
        };
        eventually("user-service is back", back).await?;
        // Even if the user was deleted meanwhile.
        let deleting = async || Ok(system.delete_user(&user_id).await.ok());
        let gone = eventually("a deletion", deleting).await?;
        let rejected = system.create_order(&user_id, &gone.consistency_token).await;
        assert_rejected(rejected, Code::FailedPrecondition, "USER_DELETED");
        let again = system.orders().create_order(repeatable).await?;
        assert_eq!(again.get_ref(), first.get_ref(), "{mode}");
        system.stop().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_validation_calls_the_configured_address() -> Result<()> {
    let proxy = Proxy::bind().await?;
    let address = proxy.address();
    let variables = [("VALIDATION", "remote"), ("USER_SERVICE_ADDR", &address)];
    let system = System::start_on_shared_servers_with("proxied", &variables).await?;
    let (user_id, _) = new_user(&system, 1).await?;
    let rejected = system.create_order(&user_id, "").await;
    assert_rejected(rejected, Code::Unavailable, "USER_SERVICE_UNAVAILABLE");
    proxy.set_target(&system.stack.names().user_service_addr);
    let ordered = async || Ok(system.create_order(&user_id, "").await.ok());
    eventually("an order through the proxy", ordered).await?;
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remotely_validated_order_is_cancelled_with_its_user() -> Result<()> {
    for mode in &MODES[1..] {
        let mut system = start(mode).await?;
        system.stack.outbox_relay.kill_and_hold().await;
        let created = system.create_user("ada@example.com", "Ada").await?;
        let user = created.user.context("a user")?;
        // The order is in progress and blocked before writing its event.
        let names = system.stack.names();
        let holding = Sql::connect(&names.orders_database_url).await?;
        let lock = "begin; lock table outbox in share mode";
        holding.batch_execute(lock).await?;
        let meanwhile = async {
            let waiting = "select count(*) from pg_locks
                           where relation = 'outbox'::regclass and not granted";
            let sql = Sql::connect(&names.orders_database_url).await?;
            sql.wait_for(waiting, 1).await?;
            // The user is deleted, and order-service applies the deletion before the order commits.
            system.delete_user(&user.user_id).await?;
            publish_deletion(&system, &user).await?;
            let deleted = "select (select count(*) from users_cache where deleted)
                             + (select count(*) from pg_locks
                                join pg_database on pg_database.oid = database
                                where datname = current_database() and locktype = 'advisory'
                                  and not granted)";
            sql.wait_for(deleted, 1).await?;
            holding.batch_execute("commit").await?;
            Ok::<_, Error>(())
        };
        let placing = async { Ok(system.create_order(&user.user_id, "").await?) };
        tokio::try_join!(placing, meanwhile)?;
        wait_until_none_is_open(&system).await?;
        assert_eq!(system.count("orders").await?, 1, "{mode}");
        system.stop().await;
    }
    Ok(())
}

/// Writes a user deletion as user-service and the relay do.
async fn publish_deletion(system: &System, user: &User) -> Result<()> {
    let now = SystemTime::now().into();
    let state = events::User {
        user_id: user.user_id.parse()?,
        email: String::new(),
        name: String::new(),
        version: 2,
        deleted: true,
        create_time: now,
        update_time: now,
    };
    let event_id = Uuid::now_v7().to_string();
    let headers = [
        (header::SPEC_VERSION, "1.0"),
        (header::TYPE, events::USER_DELETED),
        (header::ID, &event_id),
    ];
    let topic = &system.stack.names().users_topic;
    let (key, payload) = (user.user_id.as_bytes(), serde_json::to_vec(&state)?);
    Addresses::shared()
        .write_record(topic, Some(key), Some(&payload), &headers)
        .await
}
