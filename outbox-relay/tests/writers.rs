//! Runs the examples in other languages on one database: committed events arrive, and rolled-back ones don't. They require
//! their languages and download dependencies, so `make clients` runs this test and `make test` does not.

use std::{env, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use devstack::{Addresses, Sql, WorkDir, eventually, read_topic};
use diesel_async::{AsyncConnection as _, AsyncMigrationHarness, AsyncPgConnection};
use diesel_migrations::MigrationHarness as _;
use outbox_relay::{Relay, config::Config};
use tokio_util::sync::CancellationToken;

/// The topic of the examples.
const TOPIC: &str = "customers.v1";
const EXAMPLES: [(&str, &str); 4] = [
    ("python", "python3"),
    ("go", "go"),
    ("node", "npm"),
    ("java", "mvn"),
];

/// Returns the examples selected by `CLIENTS`. Skips those whose tools are not installed if `ALLOW_MISSING` is 1.
fn selected_examples() -> Vec<&'static str> {
    let clients = env::var("CLIENTS").ok();
    let is_selected = |name: &str| match &clients {
        Some(clients) => clients.split_whitespace().any(|client| client == name),
        None => true,
    };
    let allow_missing = env::var("ALLOW_MISSING").is_ok_and(|value| value == "1");
    let is_installed = |tool: &str| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|folder| folder.join(tool).is_file())
    };
    let examples = EXAMPLES.iter().filter(|(name, _)| is_selected(name));
    let examples = examples.filter(|(name, tool)| {
        let is_run = !allow_missing || is_installed(tool);
        if !is_run {
            eprintln!("{name}: skipped, {tool} is not installed");
        }
        is_run
    });
    examples.map(|(name, _)| *name).collect()
}

/// Runs an example and returns the id of the event that it committed.
fn run_example(name: &str, database_url: &str) -> Result<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let output = Command::new(folder.join(name).join("run"))
        .env("DATABASE_URL", database_url)
        .output()
        .with_context(|| format!("failed to run the example in {name}"))?;
    let (stdout, stderr) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    ensure!(output.status.success(), "{name}: {stdout}{stderr}");
    Ok(stdout.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_events_of_other_languages_arrive_and_no_others() -> Result<()> {
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

    let work_dir = WorkDir::new()?;
    let config = format!(
        "admin_addr = '127.0.0.1:0'\nkafka.brokers = {:?}\n\
         [[source]]\nname = 'writers'\ndatabase_url = {url:?}\n",
        addresses.brokers()
    );
    let config = Config::load(&work_dir.write("outbox-relay.toml", &config)?)?;
    let shutdown = CancellationToken::new();
    let relay = tokio::spawn(Relay::bind(config).await?.run(shutdown.clone()));

    let mut committed = Vec::new();
    for name in selected_examples() {
        committed.push(run_example(name, &url)?);
        eprintln!("{name}: ok");
    }
    // One more event at the end: a rolled-back one would arrive before it.
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
