//! Databases that are mixed up.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use devstack::{Addresses, built_programs};

fn migrate(service: &str, url: &str) -> Result<Output> {
    let mut command = Command::new(built_programs()?.join(service));
    Ok(command.arg("migrate").env("DATABASE_URL", url).output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_rejects_the_database_of_the_other() -> Result<()> {
    for [owner, other] in [
        ["user-service", "order-service"],
        ["order-service", "user-service"],
    ] {
        let name = Addresses::unique_name("mixed_up");
        let url = Addresses::shared().create_database(&name).await?;
        let migrated = migrate(owner, &url)?;
        ensure!(migrated.status.success(), "{migrated:?}");
        let rejected = migrate(other, &url)?;
        let told = String::from_utf8_lossy(&rejected.stderr);
        assert_eq!(rejected.status.code(), Some(70), "{told}");
        assert!(told.contains("belongs to another service"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        // What is its own, it takes again.
        let again = migrate(owner, &url)?;
        ensure!(again.status.success(), "{again:?}");
    }
    Ok(())
}
