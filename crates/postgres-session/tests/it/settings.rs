//! Defaults of a role or a database do not change what statements mean.

use anyhow::Result;
use postgres_session::connect;

use crate::{OPTIONS, create_database};

/// Settings, hostile defaults, and the values that a session needs.
const DEFAULTS: [(&str, &str, &str); 10] = [
    (
        "default_transaction_isolation",
        "serializable",
        "read committed",
    ),
    ("default_transaction_deferrable", "on", "off"),
    ("synchronous_commit", "off", "on"),
    ("row_security", "on", "off"),
    ("standard_conforming_strings", "off", "on"),
    ("transform_null_equals", "on", "off"),
    ("quote_all_identifiers", "on", "off"),
    ("statement_timeout", "1ms", "10s"),
    ("lock_timeout", "1ms", "5s"),
    ("idle_in_transaction_session_timeout", "1ms", "15s"),
];

#[tokio::test]
async fn a_session_overrides_defaults_that_change_the_meaning_of_statements() -> Result<()> {
    let (url, sql) = create_database("defaults").await?;
    for (name, value, _) in DEFAULTS {
        sql.set_database_default(name, value).await?;
    }
    let (hostile, _) = (devstack::Sql::connect(&url).await?, sql);
    let session = connect(&url.as_str().into(), &OPTIONS).await?;
    for (name, value, expected) in DEFAULTS {
        let show = format!("show {name}");
        // The default is in effect for other sessions.
        let found: String = hostile.query_one(&show, &[]).await?.get(0);
        assert_eq!(found, value, "{name}");
        let found: String = session.query_one(&show, &[]).await?.get(0);
        assert_eq!(found, expected, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_read_only_database_stays_read_only_unless_the_options_say_otherwise() -> Result<()> {
    let (url, sql) = create_database("frozen").await?;
    sql.set_database_default("default_transaction_read_only", "on")
        .await?;
    let url = url.as_str().into();
    for (forces_writes, expected) in [(false, "on"), (true, "off")] {
        let options = postgres_session::SessionOptions {
            forces_writes,
            ..OPTIONS
        };
        let session = connect(&url, &options).await?;
        let found: String = session
            .query_one("show transaction_read_only", &[])
            .await?
            .get(0);
        assert_eq!(found, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_function_of_another_schema_does_not_replace_the_settings() -> Result<()> {
    let (url, sql) = create_database("hijacked").await?;
    // Postgres would prefer it to its own for a literal without a type.
    sql.batch_execute(
        "create function public.json_each_text(text) returns table (key text, value text)
             language sql as $$ select 'work_mem', '4MB' $$",
    )
    .await?;
    let session = connect(&url.as_str().into(), &OPTIONS).await?;
    let found: String = session.query_one("show row_security", &[]).await?.get(0);
    assert_eq!(found, "off");
    Ok(())
}
