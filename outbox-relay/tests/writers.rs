//! The examples in other languages, each on the same database: what they commit arrives, and what they
//! roll back does not. They need their languages and download what they use, so that this is no part of
//! `make test`; `make clients` runs it.

use std::{env, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use devstack::{Addresses, Home, Sql, eventually, read_topic};
use diesel_async::{AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::MigrationHarness as _;
use outbox_relay::{Relay, config::Config};
use tokio_util::sync::CancellationToken;

/// As the examples name it.
const TOPIC: &str = "customers.v1";
const EXAMPLES: [(&str, &str); 4] = [
    ("python", "python3"),
    ("go", "go"),
    ("node", "npm"),
    ("java", "mvn"),
];

/// The examples that are chosen, as clients are: by `CLIENTS`, and without those whose tools this
/// machine lacks, if `ALLOW_MISSING` is 1.
fn chosen() -> Vec<&'static str> {
    let clients = env::var("CLIENTS").ok();
    let is_chosen = |name: &str| match &clients {
        Some(clients) => clients.split_whitespace().any(|client| client == name),
        None => true,
    };
    let allow_missing = env::var("ALLOW_MISSING").is_ok_and(|value| value == "1");
    let is_there = |tool: &str| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|folder| folder.join(tool).is_file())
    };
    let examples = EXAMPLES.iter().filter(|(name, _)| is_chosen(name));
    let examples = examples.filter(|(name, tool)| {
        let is_run = !allow_missing || is_there(tool);
        if !is_run {
            eprintln!("{name}: not run, no {tool}");
        }
        is_run
    });
    examples.map(|(name, _)| *name).collect()
}

/// Runs an example; returns the id of the event that it has committed.
fn run(name: &str, database_url: &str) -> Result<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let output = Command::new(folder.join(name).join("run"))
        .env("DATABASE_URL", database_url)
        .output()
        .with_context(|| format!("can't run the example in {name}"))?;
    let (said, complained) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    ensure!(output.status.success(), "{name}: {said}{complained}");
    Ok(said.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_languages_commit_arrives_and_nothing_else() -> Result<()> {
    let addresses = Addresses::shared();
    let url = addresses
        .create_database(&Addresses::unique_name("writers"))
        .await?;
    let mut harness = AsyncMigrationHarness::new(AsyncPgConnection::establish(&url).await?);
    harness
        .run_pending_migrations(outbox::MIGRATIONS)
        .map_err(anyhow::Error::from_boxed)?;
    let customers = "create table customers (
        id bigint generated always as identity primary key,
        name text not null,
        version bigint not null default 1)";
    Sql::connect(&url).await?.batch_execute(customers).await?;
    addresses.create_topic(TOPIC, 1).await?;

    let home = Home::new()?;
    let config = format!(
        "admin_addr = '127.0.0.1:0'\nkafka.brokers = {:?}\n\
         [[source]]\nname = 'writers'\ndatabase_url = {url:?}\n",
        addresses.brokers()
    );
    let config = Config::load(&home.write("outbox-relay.toml", &config)?)?;
    let shutdown = CancellationToken::new();
    let relay = tokio::spawn(Relay::bind(config).await?.run(shutdown.clone()));

    let mut committed = Vec::new();
    for name in chosen() {
        committed.push(run(name, &url)?);
        eprintln!("{name}: ok");
    }
    // One more behind them: what was rolled back would be in front of it.
    let sql = "select outbox_enqueue('customers.v1', 'last', 'customer_created', 1, '{}')";
    Sql::connect(&url).await?.batch_execute(sql).await?;
    let records = eventually("the last event in the topic", async || {
        let records = read_topic(addresses.brokers(), TOPIC).await?;
        let is_last = (records.last()).is_some_and(|record| record.key == "last");
        Ok(is_last.then_some(records))
    })
    .await?;
    let arrived: Vec<&str> = (records.iter())
        .filter_map(|record| record.header("ce_id"))
        .collect();
    assert_eq!(arrived[..arrived.len() - 1], committed);
    for record in &records[..committed.len()] {
        let state: serde_json::Value =
            serde_json::from_slice(record.payload.as_deref().context("no payload")?)?;
        assert_eq!(state["name"], "Ada", "{record:?}");
        assert_eq!(state["id"].to_string(), record.key, "{record:?}");
        assert_eq!(record.version(), 1);
    }
    shutdown.cancel();
    relay.await?
}
