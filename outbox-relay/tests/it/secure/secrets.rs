//! No output of the relay contains a password, on any error and at any log level.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use devstack::{Process, Program, WorkDir, eventually, free_port};
use outbox_relay::config::SinkKind;

use super::{
    broker::{PLAIN_PASSWORD, SecureBroker, USER},
    kafka::{records, setup},
};
use crate::{for_each_sink, harness::Session};

for_each_sink! {
    no_password_appears_in_a_log_or_a_response,
}

const WRONG_PASSWORD: &str = "mistaken-8c21";

async fn no_password_appears_in_a_log_or_a_response(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let work_dir = &Arc::new(WorkDir::new()?);
    let setup = setup(broker, &broker.ports.sasl, sink, broker.scram()).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let url = &setup.database.url;
    let parsed: tokio_postgres::Config = url.parse()?;
    let database_password = parsed.get_password().context("a URL with a password")?;
    let database_password = std::str::from_utf8(database_password)?;
    let url_file = work_dir.write("url", &url.replace(database_password, WRONG_PASSWORD))?;
    let password_file = work_dir.write("password", WRONG_PASSWORD)?;
    let config = format!(
        "[kafka]\nbrokers = {:?}\nsink = {:?}\n\
         [kafka.tls]\nca_file = {:?}\n\
         [kafka.sasl]\nmechanism = 'PLAIN'\nusername = {USER:?}\npassword_file = {password_file:?}\n\
         [[source]]\nname = 'test'\ndatabase_url_file = {url_file:?}\n",
        setup.brokers,
        format!("{sink:?}").to_lowercase(),
        broker.ca,
    );
    let config = work_dir.write("outbox-relay.toml", &config)?;
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let staged = work_dir.stage(Path::new(env!("CARGO_BIN_EXE_outbox-relay")))?;
    let program = Program::new("relay", staged)
        .args(["run".as_ref(), "--config".as_ref(), config.as_os_str()])
        .env("OUTBOX_RELAY_ADMIN_ADDR", addr)
        .env("LOG_LEVEL", "trace");
    let process = Process::start(work_dir, program);
    let mut responses = String::new();
    responses += &wait_for_readiness_text(addr, "password authentication failed").await?;
    work_dir.write("url", url)?;
    responses += &wait_for_readiness_text(addr, "check kafka.sasl.username").await?;
    work_dir.write("password", PLAIN_PASSWORD)?;
    records(broker, &setup, 1).await?;
    responses += &wait_for_readiness_text(addr, "idle\n").await?;
    process.stop().await;
    let log = fs::read_to_string(work_dir.log("relay"))?;
    // The log is complete.
    for line in [
        "password authentication failed",
        "SASL authentication failed for user",
        "shut down",
        "TRACE",
    ] {
        assert!(log.contains(line), "{line}");
    }
    for secret in [WRONG_PASSWORD, PLAIN_PASSWORD, database_password] {
        assert!(!log.contains(secret), "{secret} in the log");
        assert!(!responses.contains(secret), "{secret} in {responses}");
    }
    Ok(())
}

/// Waits until `/readyz` contains `words`, and returns its text and that of `/status`.
async fn wait_for_readiness_text(addr: SocketAddr, words: &str) -> Result<String> {
    eventually(words, async || {
        let response = outbox_relay::ask(addr, "/readyz").await;
        let Some((_, ready)) = response.ok().filter(|(_, text)| text.contains(words)) else {
            return Ok(None);
        };
        Ok(Some(ready + &outbox_relay::ask(addr, "/status").await?.1))
    })
    .await
}
