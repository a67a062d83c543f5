//! PgBouncer in front of Postgres.

use anyhow::{Context as _, Result};
use devstack::{PgBouncer, PoolMode, Proxy, eventually};
use postgres_session::{ConnectError, connect, connect_diesel};

use crate::{OPTIONS, create_database};

#[tokio::test]
async fn a_pooler_that_shares_sessions_is_rejected_by_name() -> Result<()> {
    for mode in [PoolMode::Transaction, PoolMode::Statement] {
        for settings in [&[][..], &["server_round_robin=1"]] {
            let (url, _) = create_database("pooler").await?;
            let pooler = PgBouncer::start(&url, mode, settings).await?;
            let url = pooler.url(&url)?.as_str().into();
            let rejected = [
                connect(&url, &OPTIONS).await.err(),
                connect_diesel(&url, &OPTIONS).await.err(),
            ];
            for err in rejected {
                let err = err.with_context(|| format!("{mode:?} was accepted"))?;
                assert!(
                    matches!(err, ConnectError::TransactionPooler { .. }),
                    "{err}"
                );
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pooler_in_session_mode_is_accepted() -> Result<()> {
    let (url, _) = create_database("pooler").await?;
    // One connection for the session, and one to compare with.
    let pooler = PgBouncer::start(&url, PoolMode::Session, &["default_pool_size=2"]).await?;
    let url = pooler.url(&url)?.as_str().into();
    let _first = connect(&url, &OPTIONS).await?;
    let _second = connect_diesel(&url, &OPTIONS).await?;
    Ok(())
}

/// As if it was restarted with another configuration.
#[tokio::test]
async fn a_pooler_that_changes_its_mode_is_rejected() -> Result<()> {
    let (url, _) = create_database("pooler").await?;
    let session = PgBouncer::start(&url, PoolMode::Session, &[]).await?;
    let transaction = PgBouncer::start(&url, PoolMode::Transaction, &[]).await?;
    let proxy = Proxy::start(session.address()).await?;
    let url = proxy.url(&url)?.as_str().into();
    connect(&url, &OPTIONS).await?;
    proxy.set_target(transaction.address());
    eventually("a rejection", async || {
        let err = connect(&url, &OPTIONS).await.err();
        let is_rejected = matches!(err, Some(ConnectError::TransactionPooler { .. }));
        Ok(is_rejected.then_some(()))
    })
    .await?;
    Ok(())
}
