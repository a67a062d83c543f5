//! The health service. Health checks of the database are tested in user-service.

use anyhow::Result;
use devstack::eventually;
use tonic_health::pb::{
    HealthCheckRequest,
    health_check_response::ServingStatus::{self, NotServing, Serving},
    health_client::HealthClient,
};

use crate::harness::{TestService, request, user};

/// Waits for these statuses of the whole service, the calls and the projection.
async fn wait_for(service: &TestService, expected: [ServingStatus; 3]) -> Result<()> {
    let names = ["", "order.v1.OrderService", "projection"];
    let found = async || {
        for (name, expected) in names.into_iter().zip(expected) {
            let mut client = HealthClient::new(service.channel());
            let request = HealthCheckRequest {
                service: name.to_owned(),
            };
            if client.check(request).await?.get_ref().status() != expected {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    eventually(&format!("{expected:?}"), found).await
}

#[tokio::test(flavor = "multi_thread")]
async fn health_distinguishes_calls_from_the_projection() -> Result<()> {
    let service = TestService::start("health").await?;
    wait_for(&service, [Serving; 3]).await?;
    service.stop().await?;
    let nowhere = ["--users-topic=missing.topic"];
    let service = TestService::start_with("nowhere", &nowhere).await?;
    wait_for(&service, [NotServing, Serving, NotServing]).await?;
    // Orders of known users are still accepted.
    let user = user();
    let known_user = format!(
        "insert into users_cache values ('{}', 'ada@example.com', 'Ada', 1, false)",
        user.user_id
    );
    service.sql.batch_execute(&known_user).await?;
    service.create(request(user.user_id)).await?;
    service.stop().await
}
