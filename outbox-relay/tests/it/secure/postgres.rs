//! A Postgres that lets the relay in by TLS alone, with a password or with a certificate.

use std::sync::Arc;

use anyhow::Result;
use devstack::{Home, Postgres, Sql};
use outbox_relay::config::SinkKind;

use super::{
    certificates::{Authority, Issued},
    role,
};
use crate::{
    harness::{Database, Session},
    publishing::Setup,
};

/// Who logs in with a password, and who with a certificate.
const ROLE: &str = "relay";
const CERTIFIED: &str = "certified_relay";
const PASSWORD: &str = "publishing-forecast-31c0";

/// The administrator alone may come in plain text.
const HBA: &str = "
host    all postgres        127.0.0.1/32 scram-sha-256
hostssl all relay           127.0.0.1/32 scram-sha-256
hostssl all certified_relay 127.0.0.1/32 cert
";

struct SecurePostgres {
    home: Arc<Home>,
    postgres: Postgres,
    authority: Authority,
    setup: Setup,
    session: Session,
}

impl SecurePostgres {
    /// Starts one whose certificate is for `name`, and a source there.
    async fn start(authority: Authority, issued: &Issued) -> Result<Self> {
        let home = Arc::new(Home::new()?);
        let ca = home.write("ca.crt", &authority.pem)?;
        let server = issued.write(&home, "server")?;
        let hba = home.write("pg_hba.conf", HBA)?;
        let settings = [
            "fsync=off".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_ca_file={}", ca.display()),
            format!("ssl_cert_file={}", server.certificate.display()),
            format!("ssl_key_file={}", server.key.display()),
            format!("hba_file={}", hba.display()),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let postgres = Postgres::start(&home, &settings).await?;
        let database = Database::at(postgres.admin_url().to_owned()).await?;
        let session = Session::new(&database).await?;
        for name in [ROLE, CERTIFIED] {
            role::create(&session.client, name, PASSWORD).await?;
        }
        let mut setup = Setup::new("secure_postgres", SinkKind::Kafka).await?;
        setup.database = database;
        Ok(Self {
            home,
            postgres,
            authority,
            setup,
            session,
        })
    }

    async fn start_as_localhost() -> Result<Self> {
        let authority = Authority::new("the authority")?;
        let issued = authority.issue("localhost")?;
        Self::start(authority, &issued).await
    }

    /// The relay's database from now on: this role's, by this host, with further settings.
    fn reach(&mut self, role: &str, host: &str, settings: &str) -> Result<()> {
        let url = role::url_for(self.postgres.admin_url(), role, PASSWORD)?;
        let url = url.replace("@127.0.0.1:", &format!("@{host}:"));
        self.setup.database.url = format!("{url}?{settings}");
        Ok(())
    }

    /// `sslrootcert` for this server.
    fn ca(&self) -> String {
        format!("sslrootcert={}/ca.crt", self.home.path().display())
    }

    /// Publishes one more row; there are `count` then.
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

    async fn is_kept_out(&self, words: &str) -> Result<()> {
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
async fn rows_are_published_from_a_postgres_that_refuses_plain_connections() -> Result<()> {
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
        secure.reach(ROLE, "localhost", settings)?;
        secure.publish(count + 1).await?;
    }
    secure.postgres.process.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_published_by_who_shows_a_certificate() -> Result<()> {
    let mut secure = SecurePostgres::start_as_localhost().await?;
    let own = secure.authority.issue(CERTIFIED)?;
    let own = own.write(&secure.home, "client")?;
    let (certificate, key) = (own.certificate.display(), own.key.display());
    let own = format!("sslcert={certificate}&sslkey={key}");
    let ca = secure.ca();
    secure.reach(CERTIFIED, "localhost", &format!("sslmode=verify-full&{ca}"))?;
    secure.is_kept_out("set sslcert and sslkey").await?;
    secure.reach(
        CERTIFIED,
        "localhost",
        &format!("sslmode=verify-full&{ca}&{own}"),
    )?;
    secure.publish(1).await?;
    secure.postgres.process.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_the_relay_out_of_the_database_is_said_with_the_way_out() -> Result<()> {
    let mut secure = SecurePostgres::start_as_localhost().await?;
    let ca = secure.ca();
    let stranger = Authority::new("another authority")?;
    let strange = secure.home.write("strange.crt", &stranger.pem)?;
    let strange = format!("sslmode=verify-full&sslrootcert={}", strange.display());
    for (host, settings, words) in [
        (
            "localhost",
            "sslmode=disable",
            "set sslmode=verify-full in database_url",
        ),
        (
            "localhost",
            &*strange,
            "sslrootcert in the database's URL has to hold the CA",
        ),
        (
            "localhost",
            "sslmode=verify-full",
            "sslrootcert in the database's URL has to hold the CA",
        ),
        (
            "127.0.0.1",
            &format!("sslmode=verify-full&{ca}"),
            "the host in the database's URL has to be a name that is in",
        ),
    ] {
        secure.reach(ROLE, host, settings)?;
        secure.is_kept_out(words).await?;
    }
    // An authority is asked for less than the name.
    secure.reach(ROLE, "127.0.0.1", &format!("sslmode=verify-ca&{ca}"))?;
    secure.publish(1).await?;
    secure.setup.database.url = secure.setup.database.url.replace(PASSWORD, "wrong");
    secure.is_kept_out("password authentication failed").await?;
    secure.postgres.process.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_run_out_is_not_believed() -> Result<()> {
    let authority = Authority::new("the authority")?;
    let issued = authority.issue_expired("localhost")?;
    let mut secure = SecurePostgres::start(authority, &issued).await?;
    let settings = format!("sslmode=verify-full&{}", secure.ca());
    secure.reach(ROLE, "localhost", &settings)?;
    secure.is_kept_out("renew the server's certificate").await?;

    // A new one is there for whoever connects next, at both ends.
    secure.setup.write(&secure.session, "a").await?;
    let relay = secure.setup.start().await?;
    relay.wait_for_state(503, "renew the server's").await?;
    let successor = Authority::new("the next authority")?;
    successor
        .issue("localhost")?
        .write(&secure.home, "server")?;
    let admin = Sql::connect(secure.postgres.admin_url()).await?;
    admin.batch_execute("select pg_reload_conf()").await?;
    relay.wait_for_state(503, "UnknownIssuer").await?;
    secure.home.write("ca.crt", &successor.pem)?;
    secure.setup.records(1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    secure.postgres.process.stop().await;
    Ok(())
}

/// Never in plain text where TLS was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_without_tls_is_not_spoken_to_where_tls_is_asked_for() -> Result<()> {
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
