use std::{env, fmt::Write as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio_postgres::{Config, config::Host};

use crate::{
    ports::free_port,
    processes::{Process, Program},
    sql::Sql,
    url::with_address,
    work_dir::WorkDir,
};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// What a client of PgBouncer gets a server connection for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    Session,
    Transaction,
    Statement,
}

/// A temporary PgBouncer in front of a Postgres. It stops when it is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    pub process: Process,
    address: String,
}

impl PgBouncer {
    /// Starts a PgBouncer for all databases and roles of the server of `admin_url`, a superuser's URL. `settings` are
    /// `name=value` lines of its configuration.
    ///
    /// # Errors
    /// If PgBouncer is not installed, or fails to start.
    pub async fn start(admin_url: &str, pool_mode: PoolMode, settings: &[&str]) -> Result<Self> {
        let work_dir = Arc::new(WorkDir::new()?);
        let server: Config = admin_url.parse()?;
        let user = server.get_user().context("the URL has no user")?;
        let password = server.get_password().unwrap_or_default();
        let password = String::from_utf8_lossy(password).replace('"', "\"\"");
        let users = work_dir.write("users.txt", &format!("\"{user}\" \"{password}\"\n"))?;
        let port = free_port()?;
        let mut config = format!(
            "[databases]\n* = {}\n[pgbouncer]\n\
             listen_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\n\
             auth_type=scram-sha-256\nauth_file={}\n",
            server_address(&server)?,
            users.display(),
        );
        // Other roles log in with their verifiers, which this user reads.
        writeln!(config, "auth_user={user}")?;
        writeln!(config, "pool_mode={}", pool_mode.name())?;
        for setting in settings {
            writeln!(config, "{setting}")?;
        }
        let config = work_dir.write("pgbouncer.ini", &config)?;
        let program = Program::new("pgbouncer", find_program()?)
            .args([config])
            // Since version 1.23, SIGTERM waits for clients to disconnect.
            .stop_signal(Signal::KILL);
        let process = Process::start(&work_dir, program);
        let address = format!("127.0.0.1:{port}");
        let url = with_address(admin_url, &address)?;
        process
            .wait_ready(START_TIMEOUT, async || Sql::connect(&url).await.map(drop))
            .await?;
        Ok(Self { process, address })
    }

    /// The address for clients, as `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns a database URL that goes through PgBouncer, from one of the server.
    ///
    /// # Errors
    /// If the URL has no host.
    pub fn url(&self, database_url: &str) -> Result<String> {
        with_address(database_url, &self.address)
    }
}

impl PoolMode {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        }
    }
}

/// Returns the address of a server as PgBouncer's connection string.
fn server_address(server: &Config) -> Result<String> {
    let Some(Host::Tcp(host)) = server.get_hosts().first() else {
        anyhow::bail!("the URL has no host");
    };
    let port = server.get_ports().first().copied().unwrap_or(5432);
    Ok(format!("host={host} port={port}"))
}

/// Returns the first `pgbouncer` in `PATH` or `/usr/sbin`, which a user's `PATH` often lacks.
fn find_program() -> Result<PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| program.is_file())
        .context("PgBouncer is not installed; install the package pgbouncer")
}
