//! What the health service says, which must be true at every moment.

use anyhow::{Context as _, Result};
use tokio::{net::TcpListener, time::timeout};
use tonic::Streaming;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus::{self, NotServing, Serving},
    health_client::HealthClient,
};

use devstack::{PATIENCE, eventually};

use crate::harness::TestService;

/// Everything; the calls; what is heard of orders.
const NAMES: [&str; 3] = ["", SERVICE, "projection"];
const SERVICE: &str = "user.v1.UserService";
/// Without it nobody can tell whether the schema is the right one.
const HIDE: &str = "alter table __diesel_schema_migrations rename to hidden";
const SHOW: &str = "alter table hidden rename to __diesel_schema_migrations";

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

async fn check(service: &TestService, name: &str) -> Result<ServingStatus> {
    let mut client = HealthClient::new(service.channel());
    Ok(client.check(about(name)).await?.get_ref().status())
}

async fn watch(service: &TestService, name: &str) -> Result<Streaming<HealthCheckResponse>> {
    let mut client = HealthClient::new(service.channel());
    Ok(client.watch(about(name)).await?.into_inner())
}

/// Waits until each of [`NAMES`] says what is wanted of it.
async fn wait_for(service: &TestService, wanted: [ServingStatus; 3]) -> Result<()> {
    let found = async || {
        for (name, wanted) in NAMES.into_iter().zip(wanted) {
            if check(service, name).await? != wanted {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    eventually(&format!("{wanted:?}"), found).await
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_database_and_tells_the_calls_from_the_projection() -> Result<()> {
    let service = TestService::start("health").await?;
    wait_for(&service, [Serving; 3]).await?;
    service.sql.batch_execute(HIDE).await?;
    wait_for(&service, [NotServing, NotServing, Serving]).await?;
    service.sql.batch_execute(SHOW).await?;
    wait_for(&service, [Serving; 3]).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_is_not_serving() -> Result<()> {
    let service = TestService::start("standby").await?;
    wait_for(&service, [Serving; 3]).await?;
    service.make_read_only().await?;
    wait_for(&service, [NotServing, NotServing, Serving]).await?;
    service.make_writable().await?;
    wait_for(&service, [Serving; 3]).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_of_a_newer_version_is_no_harm() -> Result<()> {
    let service = TestService::start("newer").await?;
    let newer = "insert into __diesel_schema_migrations values ('99990101000001', now())";
    service.sql.batch_execute(newer).await?;
    wait_for(&service, [Serving; 3]).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_missing_is_not_serving() -> Result<()> {
    let service = TestService::start("unmigrated").await?;
    wait_for(&service, [Serving; 3]).await?;
    let newest = "delete from __diesel_schema_migrations
                  where version = (select max(version) from __diesel_schema_migrations)";
    service.sql.batch_execute(newest).await?;
    wait_for(&service, [NotServing, NotServing, Serving]).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_while_there_is_nothing_to_follow() -> Result<()> {
    let nowhere = ["--orders-topic=nobody.made.this"];
    let service = TestService::start_with("nowhere", &nowhere).await?;
    wait_for(&service, [NotServing, Serving, NotServing]).await?;
    service.user("ada").await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_to_serve_before_it_was_looked_at() -> Result<()> {
    // A database that takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("--database-url=postgres://x@{}/x", silent.local_addr()?);
    let service = TestService::start_with("silent", &[&url]).await?;
    for name in NAMES {
        assert_eq!(check(&service, name).await?, NotServing, "{name:?}");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_streams_each_change_and_ends_with_the_server() -> Result<()> {
    let service = TestService::start("watch").await?;
    wait_for(&service, [Serving; 3]).await?;
    let mut statuses = watch(&service, SERVICE).await?;
    let mut next = async || {
        let message = timeout(PATIENCE, statuses.message()).await;
        let message = message.context("no change")??;
        Ok::<_, anyhow::Error>(message.map(|message| message.status()))
    };
    assert_eq!(next().await?, Some(Serving));
    service.sql.batch_execute(HIDE).await?;
    assert_eq!(next().await?, Some(NotServing));
    service.sql.batch_execute(SHOW).await?;
    assert_eq!(next().await?, Some(Serving));
    // Somebody who watches must not keep a server from its end.
    service.shutdown.cancel();
    assert_eq!(next().await?, Some(NotServing));
    assert_eq!(next().await?, None);
    service.stop().await
}
