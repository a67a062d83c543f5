//! A Postgres that requires TLS, with a password or a client certificate.

use std::sync::Arc;

use anyhow::Result;
use devstack::{Authority, Issued, Postgres, Sql, WorkDir};
use outbox_relay::config::SinkKind;

use super::role;
use crate::harness::{Database, Session, Setup};

/// Authenticates with a password.
const ROLE: &str = "relay";
/// Authenticates with a client certificate.
const CERTIFIED: &str = "certified_relay";
const PASSWORD: &str = "publishing-forecast-31c0";

/// Only the administrator may connect without TLS.
const HBA: &str = "
host    all postgres        127.0.0.1/32 scram-sha-256
hostssl all relay           127.0.0.1/32 scram-sha-256
hostssl all certified_relay 127.0.0.1/32 cert
";

struct SecurePostgres {
    work_dir: Arc<WorkDir>,
    postgres: Postgres,
    authority: Authority,
    setup: Setup,
    session: Session,
}

impl SecurePostgres {
    /// Starts a server with this certificate, and a source on it.
    async fn start(authority: Authority, issued: &Issued) -> Result<Self> {
        let work_dir = Arc::new(WorkDir::new()?);
        let postgres = Postgres::start_with_tls(&work_dir, &authority, issued, HBA).await?;
        let database = Database::at(postgres.admin_url().to_owned()).await?;
        let session = Session::new(&database).await?;
        for name in [ROLE, CERTIFIED] {
            role::create(&session.client, name, PASSWORD).await?;
        }
        let mut setup = Setup::new("secure_postgres", SinkKind::Kafka).await?;
        setup.database = database;
        Ok(Self {
            work_dir,
            postgres,
            authority,
            setup,
            session,
        })
    }

    async fn start_as_localhost() -> Result<Self> {
        let authority = Authority::new("test CA")?;
        let issued = authority.issue("localhost")?;
        Self::start(authority, &issued).await
    }

    /// Changes role, host and parameters of the relay's database URL.
    fn set_url(&mut self, role: &str, host: &str, settings: &str) -> Result<()> {
        let url = role::url_for(self.postgres.admin_url(), role, PASSWORD)?;
        let url = url.replace("@127.0.0.1:", &format!("@{host}:"));
        self.setup.database.url = format!("{url}?{settings}");
        Ok(())
    }

    /// The `sslrootcert` parameter for this server.
    fn ca(&self) -> String {
        format!("sslrootcert={}/ca.crt", self.work_dir.path().display())
    }

    /// Publishes another row, the `count`th.
    async fn publish(&self, count: usize) -> Result<()> {
        self.setup.write(&self.session, "a").await?;
        let relay = self.setup.start().await?;
        let records = self.setup.records(count).await?;
        assert_eq!(records.len(), count);
        relay.wait_for_readiness(200).await?;
        let plain = "select count(*) from pg_stat_activity join pg_stat_ssl using (pid)
            where application_name like 'outbox-relay%' and not ssl";
        assert_eq!(self.session.client.count(plain).await?, 0);
        let encrypted = "select count(*) from pg_stat_activity join pg_stat_ssl using (pid)
            where application_name in ('outbox-relay leader', 'outbox-relay reader') and ssl";
        assert_eq!(self.session.client.count(encrypted).await?, 2);
        relay.stop().await
    }

    async fn assert_denied(&self, words: &str) -> Result<()> {
        let relay = self.setup.start().await?;
        let text = relay
            .wait_for_state(503, "failed to connect to the database")
            .await?;
        assert!(text.contains(words), "{words}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert!(!text.contains(PASSWORD), "{text}");
        relay.stop().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_published_from_a_postgres_that_requires_tls() -> Result<()> {
    let mut secure = SecurePostgres::start_as_localhost().await?;
    let ca = secure.ca();
    for (count, settings) in [
        String::new(),
        "sslmode=require".into(),
        format!("sslmode=verify-ca&{ca}"),
        format!("sslmode=verify-full&{ca}"),
    ]
    .iter()
    .enumerate()
    {
        secure.set_url(ROLE, "localhost", settings)?;
        secure.publish(count + 1).await?;
    }
    secure.postgres.process.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_authenticates() -> Result<()> {
    let mut secure = SecurePostgres::start_as_localhost().await?;
    let own = secure.authority.issue(CERTIFIED)?;
    let own = own.write(&secure.work_dir, "client")?;
    let (certificate, key) = (own.certificate.display(), own.key.display());
    let own = format!("sslcert={certificate}&sslkey={key}");
    let ca = secure.ca();
    secure.set_url(CERTIFIED, "localhost", &format!("sslmode=verify-full&{ca}"))?;
    secure.assert_denied("set sslcert and sslkey").await?;
    secure.set_url(
        CERTIFIED,
        "localhost",
        &format!("sslmode=verify-full&{ca}&{own}"),
    )?;
    secure.publish(1).await?;
    secure.postgres.process.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_failure_is_reported_with_a_hint() -> Result<()> {
    let mut secure = SecurePostgres::start_as_localhost().await?;
    let ca = secure.ca();
    let other_authority = Authority::new("other CA")?;
    let other_ca = secure
        .work_dir
        .write("other-ca.crt", &other_authority.pem)?;
    let other_ca = format!("sslmode=verify-full&sslrootcert={}", other_ca.display());
    for (host, settings, words) in [
        (
            "localhost",
            "sslmode=disable",
            "set sslmode=verify-full in the database's URL",
        ),
        (
            "localhost",
            &*other_ca,
            "set sslrootcert in the database's URL to the CA that signed",
        ),
        (
            "localhost",
            "sslmode=verify-full",
            "set sslrootcert in the database's URL to the CA that signed",
        ),
        (
            "127.0.0.1",
            &format!("sslmode=verify-full&{ca}"),
            "set the host in the database's URL to a name in",
        ),
    ] {
        secure.set_url(ROLE, host, settings)?;
        secure.assert_denied(words).await?;
    }
    // verify-ca does not check the name.
    secure.set_url(ROLE, "127.0.0.1", &format!("sslmode=verify-ca&{ca}"))?;
    secure.publish(1).await?;
    secure.setup.database.url = secure.setup.database.url.replace(PASSWORD, "wrong");
    secure
        .assert_denied("password authentication failed")
        .await?;
    secure.postgres.process.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_server_certificate_is_not_trusted() -> Result<()> {
    let authority = Authority::new("test CA")?;
    let issued = authority.issue_expired("localhost")?;
    let mut secure = SecurePostgres::start(authority, &issued).await?;
    let settings = format!("sslmode=verify-full&{}", secure.ca());
    secure.set_url(ROLE, "localhost", &settings)?;
    secure
        .assert_denied("renew the server's certificate")
        .await?;

    // Both sides use the renewed certificate for the next connection.
    secure.setup.write(&secure.session, "a").await?;
    let relay = secure.setup.start().await?;
    relay.wait_for_state(503, "renew the server's").await?;
    let successor = Authority::new("next CA")?;
    successor
        .issue("localhost")?
        .write(&secure.work_dir, "server")?;
    let admin = Sql::connect(secure.postgres.admin_url()).await?;
    admin.batch_execute("select pg_reload_conf()").await?;
    relay.wait_for_state(503, "UnknownIssuer").await?;
    secure.work_dir.write("ca.crt", &successor.pem)?;
    secure.setup.records(1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    secure.postgres.process.stop().await;
    Ok(())
}

/// There is no fallback to plaintext.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_without_tls_is_an_error_if_tls_is_required() -> Result<()> {
    let mut setup = Setup::new("no_tls", SinkKind::Kafka).await?;
    let plain = setup.database.url.clone();
    for mode in ["require", "verify-full"] {
        setup.database.url = format!("{plain}?sslmode={mode}");
        let relay = setup.start().await?;
        let text = relay
            .wait_for_state(503, "server does not support TLS")
            .await?;
        assert!(text.contains("set ssl = on in postgresql.conf"), "{text}");
        relay.stop().await?;
    }
    Ok(())
}
