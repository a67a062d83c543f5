//! A Postgres that accepts TLS only.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use devstack::{Authority, Postgres, Sql, WorkDir};
use diesel_async::RunQueryDsl as _;
use postgres_session::connect_diesel;

use crate::OPTIONS;

/// Only the administrator may connect without TLS.
const HBA: &str = "
host    all postgres  127.0.0.1/32 scram-sha-256
hostssl all owner     127.0.0.1/32 scram-sha-256
hostssl all certified 127.0.0.1/32 cert
hostnossl all plain   127.0.0.1/32 scram-sha-256
";
const PASSWORD: &str = "reconciled-harbour-5b1e";

#[tokio::test]
async fn services_connect_to_a_postgres_that_requires_tls() -> Result<()> {
    let authority = Authority::new("test CA")?;
    let work_dir = Arc::new(WorkDir::new()?);
    let issued = authority.issue("localhost")?;
    let postgres = Postgres::start_with_tls(&work_dir, &authority, &issued, HBA).await?;
    let client = authority.issue("certified")?.write(&work_dir, "client")?;
    let admin = Sql::connect(postgres.admin_url()).await?;
    admin
        .batch_execute(&format!(
            "create role owner login password '{PASSWORD}'; create role certified login; \
             create role plain login password '{PASSWORD}'"
        ))
        .await?;
    let (_, address) = postgres.admin_url().split_once('@').context("an address")?;
    let address = address.replace("127.0.0.1", "localhost");
    let (ca, address) = (
        format!("sslrootcert={}/ca.crt", work_dir.path().display()),
        address.split('?').next().unwrap_or_default(),
    );
    let identity = format!(
        "sslcert={}&sslkey={}",
        client.certificate.display(),
        client.key.display()
    );
    for (user, parameters) in [
        (format!("owner:{PASSWORD}"), String::new()),
        (format!("owner:{PASSWORD}"), "sslmode=require".into()),
        (
            format!("owner:{PASSWORD}"),
            "sslmode=require&channel_binding=require".into(),
        ),
        (
            format!("owner:{PASSWORD}"),
            format!("sslmode=verify-ca&{ca}"),
        ),
        (
            format!("owner:{PASSWORD}"),
            format!("sslmode=verify-full&{ca}"),
        ),
        (
            "certified".into(),
            format!("sslmode=verify-full&{ca}&{identity}"),
        ),
    ] {
        let url = format!("postgres://{user}@{address}?{parameters}");
        let connected = connect_diesel(&url.as_str().into(), &OPTIONS).await;
        let mut session = connected.with_context(|| parameters.clone())?;
        let encrypted = "select 1 from pg_stat_ssl where pid = pg_backend_pid() and ssl";
        assert_eq!(
            diesel::sql_query(encrypted).execute(&mut session).await?,
            1,
            "{parameters}"
        );
    }
    // As in libpq, the default falls back to plaintext.
    let url = format!("postgres://plain:{PASSWORD}@{address}");
    let mut session = connect_diesel(&url.as_str().into(), &OPTIONS).await?;
    let plain = "select 1 from pg_stat_ssl where pid = pg_backend_pid() and not ssl";
    assert_eq!(diesel::sql_query(plain).execute(&mut session).await?, 1);
    let url = format!("postgres://plain:{PASSWORD}@{address}?sslmode=require");
    assert!(
        connect_diesel(&url.as_str().into(), &OPTIONS)
            .await
            .is_err()
    );
    for (user, parameters, words) in [
        (
            format!("owner:{PASSWORD}"),
            "sslmode=disable".into(),
            "set sslmode=verify-full",
        ),
        (
            format!("owner:{PASSWORD}"),
            "sslmode=verify-full".into(),
            "set sslrootcert",
        ),
        (
            "certified".into(),
            format!("sslmode=verify-full&{ca}"),
            "set sslcert and sslkey",
        ),
    ] {
        let url = format!("postgres://{user}@{address}?{parameters}");
        let err = connect_diesel(&url.as_str().into(), &OPTIONS).await;
        let err = err.err().context("connected")?;
        assert!(err.to_string().contains(words), "{parameters}: {err}");
        assert!(!format!("{err:?} {err}").contains(PASSWORD), "{err}");
    }
    postgres.process.stop().await;
    Ok(())
}
