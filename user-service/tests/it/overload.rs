//! Calls over the limit: some wait for the database, the others are rejected at once.

use std::time::Duration;

use anyhow::{Context as _, Result};
use devstack::eventually;
use futures_util::future::{join_all, try_join_all};
use proto::user::v1::user_service_server::SERVICE_NAME;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus::Serving, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::harness::{EVENTS, TestService, USERS, assert_rejection, request};

/// Calls until a call is rejected with OVERLOADED. A call below the limit blocks until it is abandoned.
async fn overload(service: &TestService) -> Result<Status> {
    let rejected = async || {
        let rejected = service.create(request("one_more")).await;
        let status = rejected.err().context("the call was accepted")?;
        let reason = status.get_details_error_info().context("no ErrorInfo")?;
        Ok((reason.reason == "OVERLOADED").then_some(status))
    };
    eventually("a rejection", rejected).await
}

/// Waits for the next health check of the database.
async fn wait_for_probe(service: &TestService) -> Result<()> {
    let last = "select extract(epoch from max(query_start)) * 1000000 from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid()
                  and query like '%transaction_read_only%'";
    let before = service.sql.count(last).await?;
    let later = async || Ok((service.sql.count(last).await? > before).then_some(()));
    eventually("a health check", later).await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_limit_are_rejected_at_once_and_calls_within_it_succeed() -> Result<()> {
    let options = ["--max-calls=20", "--database-pool-size=2"];
    let service = TestService::start_with("overload", &options).await?;
    let lock = service.lock_users().await?;
    let requests: Vec<_> = (0..20).map(|n| request(&format!("user{n}"))).collect();
    let held = try_join_all(
        requests
            .iter()
            .map(|request| service.create_at_last(request)),
    );
    let rejecting = async {
        service.wait_for_held_calls(2).await?;
        let status = overload(&service).await?;
        // Ten times the limit; all are rejected while the calls within the limit still wait.
        let too_many: Vec<_> = (0..180).map(|n| request(&format!("many{n}"))).collect();
        for rejected in join_all(too_many.into_iter().map(|one| service.create(one))).await {
            let status = rejected.err().context("the call was accepted")?;
            assert_rejection(&status, Code::ResourceExhausted, "OVERLOADED");
        }
        let details = assert_rejection(&status, Code::ResourceExhausted, "OVERLOADED");
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        let delay = delay.context("no RetryInfo")?;
        let spread = Duration::from_millis(200)..Duration::from_millis(400);
        assert!(spread.contains(&delay), "{delay:?}");
        let pushback = status.metadata().get("grpc-retry-pushback-ms");
        let pushback = pushback.context("no pushback")?.to_str()?;
        assert_eq!(pushback, delay.as_millis().to_string());
        // Health has its own connections, and its status is current.
        for _ in 0..2 {
            wait_for_probe(&service).await?;
        }
        let mut health = HealthClient::new(service.channel());
        let about = HealthCheckRequest {
            service: SERVICE_NAME.to_owned(),
        };
        assert_eq!(health.check(about).await?.get_ref().status(), Serving);
        lock.release().await
    };
    let (done, rejected) = tokio::join!(held, rejecting);
    rejected?;
    assert_eq!(done?.len(), 20);
    assert_eq!(service.sql.count(USERS).await?, 20);
    assert_eq!(service.sql.count(EVENTS).await?, 20);
    service.create(request("one_more")).await?;
    service.stop().await
}
