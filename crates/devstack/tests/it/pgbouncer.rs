use anyhow::Result;
use devstack::{Addresses, PgBouncer, PoolMode, Sql, eventually};
use tokio_postgres::SimpleQueryMessage;

/// Returns the value that a statement of the simple protocol selects: older versions do not support prepared statements.
async fn select(sql: &Sql, query: &str) -> Result<Option<String>> {
    let messages = sql.simple_query(query).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

async fn create_database() -> Result<String> {
    let name = Addresses::unique_name("pgbouncer");
    Addresses::shared().create_database(&name).await
}

/// Sets a parameter in one session, and returns its value in another.
async fn set_and_read(url: &str) -> Result<Option<String>> {
    let (first, second) = (Sql::connect(url).await?, Sql::connect(url).await?);
    first.batch_execute("set lock_timeout = '123ms'").await?;
    select(&second, "show lock_timeout").await
}

#[tokio::test]
async fn settings_leak_to_other_sessions_in_transaction_mode_only() -> Result<()> {
    let url = create_database().await?;
    let one = ["default_pool_size=1"];
    let transaction = PgBouncer::start(&url, PoolMode::Transaction, &one).await?;
    let value = set_and_read(&transaction.url(&url)?).await?;
    assert_eq!(value.as_deref(), Some("123ms"));
    let session = PgBouncer::start(&url, PoolMode::Session, &[]).await?;
    let value = set_and_read(&session.url(&url)?).await?;
    assert_eq!(value.as_deref(), Some("0"));
    Ok(())
}

#[tokio::test]
async fn every_role_can_log_in() -> Result<()> {
    let url = create_database().await?;
    let role = Addresses::unique_name("role");
    let admin = Sql::connect(&url).await?;
    let create = format!("create role {role} login password 'secret'");
    admin.batch_execute(&create).await?;
    let bouncer = PgBouncer::start(&url, PoolMode::Transaction, &[]).await?;
    let (_, address) = url.rsplit_once('@').expect("a URL with a password");
    let url = bouncer.url(&format!("postgres://{role}:secret@{address}"))?;
    let sql = Sql::connect(&url).await?;
    let user = select(&sql, "select current_user").await?;
    assert_eq!(user, Some(role.clone()));
    let wrong = url.replace("secret", "wrong");
    assert!(Sql::connect(&wrong).await.is_err());
    admin.batch_execute(&format!("drop role {role}")).await?;
    Ok(())
}

#[tokio::test]
async fn a_dropped_pgbouncer_stops() -> Result<()> {
    let url = create_database().await?;
    let bouncer = PgBouncer::start(&url, PoolMode::Session, &[]).await?;
    let bouncer_url = bouncer.url(&url)?;
    let sql = Sql::connect(&bouncer_url).await?;
    drop(bouncer);
    let closed = async || Ok(sql.is_closed().then_some(()));
    eventually("the end of the session", closed).await?;
    assert!(Sql::connect(&bouncer_url).await.is_err());
    Ok(())
}
