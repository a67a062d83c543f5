//! A correct database and topic, and the program with a configuration for them.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use devstack::{Addresses, WorkDir, eventually, free_port};

use crate::harness::Database;

/// The privileges that the README lists.
const GRANTS: &str = "
    grant select on outbox to ROLE;
    grant select, truncate on outbox_0, outbox_1, outbox_2, outbox_3, outbox_4, outbox_5, outbox_6,
        outbox_7 to ROLE;
    grant select on sequence outbox_seq to ROLE;
    grant select, insert, update on relay_checkpoints to ROLE;
    grant select, insert, update, delete on relay_parked, relay_dead_letters to ROLE;
    insert into outbox (topic, key, event_type, aggregate_version) values ('TOPIC', 'a', 'made', 1)";

pub(super) struct Setting {
    pub(super) database: Database,
    pub(super) topic: String,
    pub(super) parts: Parts,
    work_dir: WorkDir,
}

/// The parts of the configuration.
pub(super) struct Parts {
    pub(super) admin_addr: SocketAddr,
    pub(super) brokers: String,
    role: String,
    pub(super) password: String,
    /// As `host:port`.
    pub(super) server: String,
    pub(super) database: String,
    pub(super) database_url_file: Option<PathBuf>,
    pub(super) sink: &'static str,
    /// More lines of the source.
    pub(super) source: String,
}

impl Parts {
    fn text(&self) -> String {
        let Self {
            admin_addr,
            brokers,
            role,
            password,
            server,
            database,
            database_url_file,
            sink,
            source,
        } = self;
        let database = match database_url_file {
            Some(file) => format!("database_url_file = {file:?}"),
            None => format!("database_url = 'postgres://{role}:{password}@{server}/{database}'"),
        };
        format!(
            "admin_addr = '{admin_addr}'\n[kafka]\nbrokers = '{brokers}'\nsink = '{sink}'\n\
             [[source]]\nname = 'test'\n# The outbox.\n{database}\n{source}"
        )
    }
}

impl Setting {
    pub(super) async fn new(test: &str) -> Result<Self> {
        // Names of databases and roles end after 63 bytes.
        let short: String = test.chars().take(40).collect();
        let topic = Addresses::unique_name(&short);
        Addresses::shared().create_topic(&topic, 3).await?;
        let database = Database::new(&short).await?;
        let (_, place) = database.url.rsplit_once('@').context("a URL with a user")?;
        let (server, name) = place.split_once('/').context("a URL with a database")?;
        let parts = Parts {
            admin_addr: ([127, 0, 0, 1], free_port()?).into(),
            brokers: Addresses::shared().brokers().to_owned(),
            role: name.to_owned(),
            password: "secret".into(),
            server: server.to_owned(),
            database: name.to_owned(),
            database_url_file: None,
            sink: "kafka",
            source: String::new(),
        };
        let setting = Self {
            database,
            topic,
            parts,
            work_dir: WorkDir::new()?,
        };
        let login = "create role ROLE login password 'secret'";
        setting.administer(login).await?;
        setting.administer(GRANTS).await?;
        Ok(setting)
    }

    /// Executes statements as the administrator; ROLE is the relay's role, TOPIC the topic.
    pub(super) async fn administer(&self, sql: &str) -> Result<()> {
        let sql = sql.replace("ROLE", &self.parts.role);
        let sql = sql.replace("TOPIC", &self.topic);
        let client = self.database.connect().await?;
        Ok(client.batch_execute(&sql).await?)
    }

    /// Runs the program with these arguments. Returns its exit code and its whole output.
    pub(super) async fn output(&self, args: &[&str]) -> Result<(Option<i32>, String)> {
        let mut command = self.command()?;
        command.args(args);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
        Ok((output.status.code(), text))
    }

    /// Runs the program with another standard output. Returns its exit code and its standard error.
    pub(super) async fn output_to(
        &self,
        stdout: impl Into<Stdio>,
        args: &[&str],
    ) -> Result<(Option<i32>, String)> {
        let mut command = self.command()?;
        command.args(args).stdout(stdout).stderr(Stdio::piped());
        let output = tokio::task::spawn_blocking(move || command.spawn()?.wait_with_output());
        let output = output.await??;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    }

    /// Like [`output`](Self::output), but returns only the lines with failures, without their prefix.
    pub(super) async fn failures(&self, command: &str) -> Result<(Option<i32>, Vec<String>)> {
        let (code, text) = self.output(&[command]).await?;
        let failure = |line: &str| {
            let line = line.strip_prefix("FAIL").or(line.strip_prefix("error:"));
            line.map(|line| line.trim_start().to_owned())
        };
        Ok((code, text.lines().filter_map(failure).collect()))
    }

    /// Starts the relay as a process.
    pub(super) fn run(&self) -> Result<Relay> {
        let log = self.work_dir.path().join("relay.log");
        let child = self
            .command()?
            .arg("run")
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(Relay {
            child,
            admin_addr: self.parts.admin_addr,
            log,
        })
    }

    fn command(&self) -> Result<Command> {
        let config = self
            .work_dir
            .write("outbox-relay.toml", &self.parts.text())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        command.arg("--config").arg(config).stdin(Stdio::null());
        Ok(command)
    }
}

/// A running relay. Dropping it kills the process.
pub(super) struct Relay {
    child: Child,
    admin_addr: SocketAddr,
    log: PathBuf,
}

impl Relay {
    /// Waits until `/readyz` returns `code` and a text with all `words`.
    pub(super) async fn wait_for(&self, code: u16, words: &[&str]) -> Result<()> {
        eventually(&format!("{code} {words:?}"), async || {
            let response = outbox_relay::ask(self.admin_addr, "/readyz").await.ok();
            let matches = response.is_some_and(|(found, text)| {
                found == code && words.iter().all(|part| text.contains(part))
            });
            Ok(matches.then_some(()))
        })
        .await
    }

    pub(super) async fn status(&self) -> Result<serde_json::Value> {
        let (_, text) = outbox_relay::ask(self.admin_addr, "/status").await?;
        let [status]: [serde_json::Value; 1] = serde_json::from_str(&text)?;
        Ok(status)
    }

    /// Waits until the source has restarted this many times.
    pub(super) async fn wait_for_restarts(&self, count: u64) -> Result<()> {
        eventually(&format!("{count} restarts"), async || {
            let status = self.status().await?;
            let restarts = status["restarts"].as_object().context("an object")?;
            let restarts = restarts.values().filter_map(serde_json::Value::as_u64);
            Ok((restarts.sum::<u64>() >= count).then_some(()))
        })
        .await
    }

    pub(super) async fn wait_until_published(&self, records: u64) -> Result<()> {
        eventually(&format!("{records} published"), async || {
            let status = self.status().await?;
            Ok((status["published"].as_u64() >= Some(records)).then_some(()))
        })
        .await
    }

    /// Kills the relay and returns its log.
    pub(super) fn kill(&mut self) -> Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(fs::read_to_string(&self.log)?)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
