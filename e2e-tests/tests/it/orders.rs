use anyhow::{Context as _, Result};
use demo::System;
use tonic::Code;
use tonic_types::StatusExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_user_can_order_at_once_with_the_token_and_soon_without() -> Result<()> {
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
        // Retry the same call, as the error's hint says.
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

/// While the projection lags, a call with the token waits for it; the wait for an unknown user is shorter.
#[tokio::test(flavor = "multi_thread")]
async fn while_users_lag_a_token_waits_and_a_call_without_one_is_rejected() -> Result<()> {
    let variables = [("TOKEN_WAIT_MS", "30000"), ("UNKNOWN_USER_WAIT_MS", "50")];
    let system = System::start_on_shared_servers_with("lag", &variables).await?;
    system.stack.outbox_relay.suspend();
    let created = system.create_user("lag@example.com", "L").await?;
    let user_id = created.user.context("a user")?.user_id;
    // The client's deadline is 10 s; the relay continues well before.
    let with_token = system.create_order(&user_id, &created.consistency_token);
    let without = async {
        let rejected = system.create_order(&user_id, "").await.err();
        let status = rejected.context("an order for a user that is not known")?;
        let reason = status.get_details_error_info().map(|info| info.reason);
        assert_eq!(reason.as_deref(), Some("USER_UNKNOWN"), "{status:?}");
        system.stack.outbox_relay.resume();
        Ok(())
    };
    let (placed, rejected) = tokio::join!(with_token, without);
    rejected.and(placed.map(drop).map_err(anyhow::Error::from))?;
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn order_service_catches_up_after_an_outage_and_honors_the_token() -> Result<()> {
    let mut system = System::start_on_shared_servers("outage").await?;
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
            // Unavailable or lagging, but never "unknown" with a token.
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "never");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    system.stop().await;
    Ok(())
}
