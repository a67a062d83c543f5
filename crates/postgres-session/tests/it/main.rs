//! Tests of sessions on real servers: Postgres with other settings and languages, with TLS, behind a proxy that falls silent,
//! and behind PgBouncer.

mod errors;
mod poolers;
mod settings;
mod silence;
mod tls;

use std::time::Duration;

use anyhow::Result;
use devstack::{Addresses, Sql};
use postgres_session::SessionOptions;

/// Short limits, so that tests end soon.
const OPTIONS: SessionOptions = SessionOptions {
    connect_timeout: Duration::from_secs(5),
    response_timeout: Some(Duration::from_secs(2)),
    ..SessionOptions::for_service("test")
};

/// Creates a database, and returns its URL and a session on it.
async fn create_database(test: &str) -> Result<(String, Sql)> {
    let name = Addresses::unique_name(test);
    let url = Addresses::shared().create_database(&name).await?;
    let sql = Sql::connect(&url).await?;
    Ok((url, sql))
}
