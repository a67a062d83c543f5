use anyhow::{Context as _, Result};
use devstack::{Addresses, Sql};

#[tokio::test]
async fn a_database_can_have_german_messages() -> Result<()> {
    let name = Addresses::unique_name("german");
    let url = Addresses::shared().create_database(&name).await?;
    let admin = Sql::connect(&url).await?;
    admin
        .set_database_default("lc_messages", "de_DE.UTF-8")
        .await?;
    let german = Sql::connect(&url).await?;
    let failed = german.batch_execute("select 1 / 0").await;
    let error = failed.err().context("a division by zero")?;
    let message = error.as_db_error().context("an error of the server")?;
    // `scripts/setup --tests` installs the locale and the messages.
    assert_eq!(message.message(), "Division durch Null");
    Ok(())
}
