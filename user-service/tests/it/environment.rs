//! The environments of users: other settings and languages of the database, connections that fall silent, a pooler.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use devstack::{Addresses, Fault, PgBouncer, PoolMode, Proxy, Sql, eventually};
use futures_util::future::try_join_all;
use service_kit::{
    Application as _,
    database::{create_pool, migrate, probe},
};
use testkit::{RunningService, assert_config_errors};
use tonic::Code;
use user_service::UserService;
use uuid::Uuid;

use tonic_health::pb::health_check_response::ServingStatus::{NotServing, Serving};

use crate::{
    harness::{CROWDED, TestService, USERS, renaming, request},
    health::wait_for,
};

/// Creates a database with these defaults, and its topic.
async fn create_database(name: &str, defaults: &[(&str, &str)]) -> Result<String> {
    Addresses::shared().create_topic(name, 3).await?;
    let url = RunningService::create_database::<UserService>(name).await?;
    let sql = Sql::connect(&url).await?;
    for (setting, value) in defaults {
        sql.set_database_default(setting, value).await?;
    }
    Ok(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stricter_default_isolation_changes_no_response() -> Result<()> {
    for isolation in ["serializable", "repeatable read"] {
        let name = Addresses::unique_name("isolation");
        let url = create_database(&name, &[("default_transaction_isolation", isolation)]).await?;
        let service = TestService::start_at(name, &url, CROWDED).await?;
        let user = service.user("ada").await?;
        let (service_ref, user) = (&service, &user);
        let updates = (0..8).map(|thread| async move {
            for number in 0..10 {
                let name = format!("ada {thread} {number}");
                service_ref.update(renaming(user, &name)).await?;
            }
            Ok::<_, tonic::Status>(())
        });
        try_join_all(updates).await?;
        assert_eq!(service.get(&user.user_id).await?.version, 81);
        // Concurrent repeats of one request get one response.
        let repeated = proto::user::v1::CreateUserRequest {
            request_id: Uuid::new_v4().to_string(),
            ..request("bob")
        };
        let repeats = (0..8).map(|_| service_ref.create_at_last(&repeated));
        let responses = try_join_all(repeats).await?;
        assert!(
            responses.windows(2).all(|pair| pair[0] == pair[1]),
            "{responses:?}"
        );
        assert_eq!(service.sql.count(USERS).await?, 2);
        service.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_timeout_is_unavailable_in_every_language() -> Result<()> {
    let name = Addresses::unique_name("german");
    let url = create_database(&name, &[("lc_messages", "de_DE.utf8")]).await?;
    let sql = Sql::connect(&url).await?;
    let german = sql
        .batch_execute("select 1 / 0")
        .await
        .map_err(|err| format!("{err:?}"));
    ensure!(
        german.is_err_and(|err| err.contains("Division durch Null")),
        "Postgres does not speak German"
    );
    let service = TestService::start_at(name, &url, CROWDED).await?;
    let lock = service.lock_users().await?;
    let rejected = service.create(request("ada")).await;
    let status = rejected
        .err()
        .context("the call did not wait for the lock")?;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    lock.release().await?;
    service.user("ada").await?;
    service.stop().await
}

/// Calls work again within 20 s, whether the connections were idle or in use when they fell silent.
#[tokio::test(flavor = "multi_thread")]
async fn calls_recover_from_silent_connections() -> Result<()> {
    let name = Addresses::unique_name("silent");
    let url = create_database(&name, &[]).await?;
    let proxy = Proxy::start_for(&url).await?;
    let service = TestService::start_at(name, &proxy.url(&url)?, &[]).await?;
    for round in 0..2 {
        let create = async |number: i32| {
            let name = format!("user {round} {number} {}", Uuid::new_v4());
            service
                .create(proto::user::v1::CreateUserRequest {
                    email: format!("{}@example.com", Uuid::new_v4()),
                    name,
                    ..Default::default()
                })
                .await
        };
        try_join_all((0..8).map(&create)).await?;
        let since = Instant::now();
        if round == 0 {
            // Connections in use.
            let calls = futures_util::future::join_all((0..16).map(&create));
            let silence = async { proxy.silence_open_connections() };
            tokio::join!(calls, silence);
        } else {
            proxy.silence_open_connections();
        }
        eventually("a successful call", async || Ok(create(0).await.ok())).await?;
        try_join_all((0..8).map(&create)).await?;
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "{:?}",
            since.elapsed()
        );
    }
    service.stop().await
}

/// With the defaults, the drain takes 10 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_database_is_reported_and_delays_no_shutdown() -> Result<()> {
    let name = Addresses::unique_name("mute");
    let url = create_database(&name, &[]).await?;
    let proxy = Proxy::start_for(&url).await?;
    let service = TestService::start_at(name, &proxy.url(&url)?, &[]).await?;
    wait_for(&service, [Serving; 3]).await?;
    proxy.set(Fault::Silence).await?;
    wait_for(&service, [NotServing, NotServing, Serving]).await?;
    let mut users = service.users();
    let call = tokio::spawn(async move { users.create_user(request("ada")).await });
    let since = Instant::now();
    service.stop().await?;
    assert!(
        since.elapsed() < Duration::from_secs(18),
        "{:?}",
        since.elapsed()
    );
    assert!(call.await?.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_is_rejected_at_start() -> Result<()> {
    let name = Addresses::unique_name("pooled");
    let url = create_database(&name, &[]).await?;
    let pooler = PgBouncer::start(&url, PoolMode::Transaction, &[]).await?;
    let url = pooler.url(&url)?;
    let program = env!("CARGO_BIN_EXE_user-service");
    let serve = tokio::task::spawn_blocking(move || {
        let variables = [
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("DATABASE_URL", &*url),
            ("KAFKA_BROKERS", Addresses::shared().brokers()),
        ];
        testkit::run(program, &["serve"], &variables)
    });
    let output = serve.await??;
    assert_config_errors(&output, &["DATABASE_URL"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("connection pooler in transaction mode"),
        "{text}"
    );
    Ok(())
}

/// A database that cannot store every character fails in some calls only.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_another_encoding_is_rejected() -> Result<()> {
    const REASON: &str = "database encoding is LATIN1, must be UTF8";
    let name = Addresses::unique_name("encoding");
    let url = Addresses::shared().create_database(&name).await?;
    let latin1 = format!(
        "create database \"{name}_latin1\" template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"
    );
    Sql::connect(&url).await?.batch_execute(&latin1).await?;
    let url = format!("{url}_latin1").as_str().into();
    let migrations = UserService::migrations();
    let migrated = migrate("user-service", &url, migrations).await;
    let probed = probe(&create_pool("user-service", &url, 1), migrations).await;
    assert_eq!(
        migrated.map_err(|err| err.to_string()).err().as_deref(),
        Some(REASON)
    );
    assert_eq!(probed.err().as_deref(), Some(REASON));
    Ok(())
}
