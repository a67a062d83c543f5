//! The health service.

use anyhow::{Context as _, Result};
use tokio::{net::TcpListener, time::timeout};
use tonic::Streaming;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus::{self, NotServing, Serving},
    health_client::HealthClient,
};

use devstack::{WAIT_TIMEOUT, eventually};

use crate::harness::TestService;

/// The whole service, the calls, and the projection.
const NAMES: [&str; 3] = ["", SERVICE, "projection"];
const SERVICE: &str = "user.v1.UserService";
/// Hides the table of applied migrations, which the health check reads.
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

/// Waits until the [`NAMES`] have the expected statuses.
pub(crate) async fn wait_for(service: &TestService, expected: [ServingStatus; 3]) -> Result<()> {
    let found = async || {
        for (name, expected) in NAMES.into_iter().zip(expected) {
            if check(service, name).await? != expected {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    eventually(&format!("{expected:?}"), found).await
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_database_and_distinguishes_calls_from_the_projection() -> Result<()> {
    let service = TestService::start("health").await?;
    wait_for(&service, [Serving; 3]).await?;
    service.sql.batch_execute(HIDE).await?;
    wait_for(&service, [NotServing, NotServing, Serving]).await?;
    service.sql.batch_execute(SHOW).await?;
    wait_for(&service, [Serving; 3]).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_not_serving() -> Result<()> {
    let service = TestService::start("standby").await?;
    wait_for(&service, [Serving; 3]).await?;
    service.make_read_only().await?;
    wait_for(&service, [NotServing, NotServing, Serving]).await?;
    service.make_writable().await?;
    wait_for(&service, [Serving; 3]).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_of_a_newer_release_is_accepted() -> Result<()> {
    let service = TestService::start("newer").await?;
    let newer = "insert into __diesel_schema_migrations values ('99990101000001', now())";
    service.sql.batch_execute(newer).await?;
    wait_for(&service, [Serving; 3]).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_migration_is_not_serving() -> Result<()> {
    let service = TestService::start("unmigrated").await?;
    wait_for(&service, [Serving; 3]).await?;
    let newest = "delete from __diesel_schema_migrations
                  where version = (select max(version) from __diesel_schema_migrations)";
    service.sql.batch_execute(newest).await?;
    wait_for(&service, [NotServing, NotServing, Serving]).await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_served_while_the_topic_is_missing() -> Result<()> {
    let nowhere = ["--orders-topic=missing.topic"];
    let service = TestService::start_with("nowhere", &nowhere).await?;
    wait_for(&service, [NotServing, Serving, NotServing]).await?;
    service.user("ada").await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_reported_as_serving_before_the_first_check() -> Result<()> {
    // A database that accepts connections and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("--database-url=postgres://x@{}/x", silent.local_addr()?);
    let service = TestService::start_with("silent", &[&url]).await?;
    for name in NAMES {
        assert_eq!(check(&service, name).await?, NotServing, "{name:?}");
    }
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_watch_streams_each_change_and_ends_at_shutdown() -> Result<()> {
    let service = TestService::start("watch").await?;
    wait_for(&service, [Serving; 3]).await?;
    let mut statuses = watch(&service, SERVICE).await?;
    let mut next = async || {
        let message = timeout(WAIT_TIMEOUT, statuses.message()).await;
        let message = message.context("no change")??;
        Ok::<_, anyhow::Error>(message.map(|message| message.status()))
    };
    assert_eq!(next().await?, Some(Serving));
    service.sql.batch_execute(HIDE).await?;
    assert_eq!(next().await?, Some(NotServing));
    service.sql.batch_execute(SHOW).await?;
    assert_eq!(next().await?, Some(Serving));
    // An open health watch must not delay the shutdown.
    service.shutdown.cancel();
    assert_eq!(next().await?, Some(NotServing));
    assert_eq!(next().await?, None);
    service.stop().await
}
