use std::{env, process::Command};

use anyhow::{Context as _, Result};
use devstack::{Addresses, Sql};

async fn create_database() -> Result<String> {
    let name = Addresses::unique_name("settings");
    Addresses::shared().create_database(&name).await
}

#[tokio::test]
async fn a_database_can_have_german_messages() -> Result<()> {
    let url = create_database().await?;
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

/// Runs itself with the variable, because a process cannot safely change its own.
#[tokio::test]
async fn created_databases_have_the_settings_of_the_variable() -> Result<()> {
    const MARK: &str = "DEVSTACK_TEST_RUNS_ITSELF";
    if env::var_os(MARK).is_none() {
        let name = "database_settings::created_databases_have_the_settings_of_the_variable";
        let output = Command::new(env::current_exe()?)
            .args(["--exact", name])
            .envs(Addresses::shared().variables())
            .env("DEVSTACK_DATABASE_SETTINGS", "work_mem=1MB,app.name=a b")
            .env(MARK, "")
            .output()?;
        let (status, text) = (output.status, String::from_utf8_lossy(&output.stdout));
        assert!(status.success(), "{status}: {text}");
        return Ok(());
    }
    let sql = Sql::connect(&create_database().await?).await?;
    for (parameter, expected) in [("work_mem", "1MB"), ("app.name", "a b")] {
        let query = "select current_setting($1)";
        let row = sql.query_one(query, &[&parameter]).await?;
        assert_eq!(row.get::<_, String>(0), expected, "{parameter}");
    }
    Ok(())
}
