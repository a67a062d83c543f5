use anyhow::{Context as _, Result};
use demo::System;
use tonic::Code;
use tonic_types::StatusExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_user_orders_at_once_with_the_token_and_soon_without() -> Result<()> {
    let system = System::start_on_shared_servers("orders").await?;
    for number in 0..50 {
        let created = system
            .create_user(&format!("t{number}@example.com"), "T")
            .await?;
        let user_id = created.user.context("a user")?.user_id;
        system
            .create_order(&user_id, &created.consistency_token)
            .await?;
    }
    for number in 0..50 {
        let created = system
            .create_user(&format!("n{number}@example.com"), "N")
            .await?;
        let user_id = created.user.context("a user")?.user_id;
        // What the error says to do: the same call again.
        while let Err(status) = system.create_order(&user_id, "").await {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
            let details = status.get_error_details();
            assert_eq!(
                details.error_info().context("ErrorInfo")?.reason,
                "USER_UNKNOWN"
            );
            let delay = details.retry_info().context("RetryInfo")?.retry_delay;
            tokio::time::sleep(delay.context("a delay")?).await;
        }
    }
    super::assert_nothing_lost(&system, &[]).await?;
    assert_eq!(system.count("users_cache").await?, 100);
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_service_that_was_away_catches_up_and_honours_the_token() -> Result<()> {
    let mut system = System::start_on_shared_servers("away").await?;
    system.stack.order_service.stop_and_hold().await;
    let created = system.create_user("late@example.com", "Late").await?;
    let user_id = created.user.context("a user")?.user_id;
    system.stack.order_service.release().await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match system
            .create_order(&user_id, &created.consistency_token)
            .await
        {
            Ok(_) => break,
            // Not there yet, or there and still behind; with a token never "unknown".
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "never");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    system.stop().await;
    Ok(())
}
