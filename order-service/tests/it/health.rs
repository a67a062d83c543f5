//! What the health service says. How it follows the database is the same in user-service, whose
//! tests show it.

use anyhow::Result;
use devstack::eventually;
use tonic_health::pb::{
    HealthCheckRequest,
    health_check_response::ServingStatus::{self, NotServing, Serving},
    health_client::HealthClient,
};

use crate::harness::{TestService, request, user};

/// Waits until it says this of everything, of the calls, and of what is heard of users.
async fn wait_for(service: &TestService, wanted: [ServingStatus; 3]) -> Result<()> {
    let names = ["", "order.v1.OrderService", "projection"];
    let found = async || {
        for (name, wanted) in names.into_iter().zip(wanted) {
            let mut client = HealthClient::new(service.channel());
            let request = HealthCheckRequest {
                service: name.to_owned(),
            };
            if client.check(request).await?.get_ref().status() != wanted {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    eventually(&format!("{wanted:?}"), found).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_and_the_projection_are_told_apart() -> Result<()> {
    let service = TestService::start("health").await?;
    wait_for(&service, [Serving; 3]).await?;
    service.stop().await?;
    let nowhere = ["--users-topic=nobody.made.this"];
    let service = TestService::start_with("nowhere", &nowhere).await?;
    wait_for(&service, [NotServing, Serving, NotServing]).await?;
    // Orders of users who are known are still taken.
    let user = user();
    let heard_before = format!(
        "insert into users_cache values ('{}', 'ada@example.com', 'Ada', 1, false)",
        user.user_id
    );
    service.sql.batch_execute(&heard_before).await?;
    service.create(request(user.user_id)).await?;
    service.stop().await
}
