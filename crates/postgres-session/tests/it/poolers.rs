//! PgBouncer in front of Postgres.

use anyhow::{Context as _, Result};
use devstack::{PgBouncer, PoolMode};
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
    let pooler = PgBouncer::start(&url, PoolMode::Session, &[]).await?;
    let url = pooler.url(&url)?.as_str().into();
    connect(&url, &OPTIONS).await?;
    let _second = (
        connect_diesel(&url, &OPTIONS).await?,
        connect_diesel(&url, &OPTIONS).await?,
    );
    Ok(())
}
