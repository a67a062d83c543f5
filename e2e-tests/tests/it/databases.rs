//! Services with each other's database.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use devstack::{Addresses, built_programs};

fn migrate(service: &str, url: &str) -> Result<Output> {
    let mut command = Command::new(built_programs()?.join(service));
    Ok(command.arg("migrate").env("DATABASE_URL", url).output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_rejects_the_database_of_another_service() -> Result<()> {
    for [owner, other] in [
        ["user-service", "order-service"],
        ["order-service", "user-service"],
    ] {
        let name = Addresses::unique_name("mixed_up");
        let url = Addresses::shared().create_database(&name).await?;
        let migrated = migrate(owner, &url)?;
        ensure!(migrated.status.success(), "{migrated:?}");
        let rejected = migrate(other, &url)?;
        let stderr = String::from_utf8_lossy(&rejected.stderr);
        assert_eq!(rejected.status.code(), Some(70), "{stderr}");
        assert!(stderr.contains("belongs to another service"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        // Its own database is still accepted.
        let again = migrate(owner, &url)?;
        ensure!(again.status.success(), "{again:?}");
    }
    Ok(())
}
