use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::{
    home::Home,
    ports::free_port,
    processes::{Process, Program},
    sql::Sql,
};

/// The oldest major version that has everything we use.
const OLDEST_VERSION: u32 = 15;
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A Postgres cluster of its own.
#[derive(Debug)]
pub struct Postgres {
    /// The running server.
    pub process: Process,
    admin_url: String,
}

impl Postgres {
    /// Makes a cluster in `home` and starts it; `settings` are further lines of its configuration.
    ///
    /// # Errors
    /// If there is no Postgres on this machine, or it doesn't start.
    pub async fn start(home: &Arc<Home>, settings: &[&str]) -> Result<Self> {
        let bin = find_binaries()?;
        let (port, password) = (free_port()?, uuid::Uuid::new_v4().simple().to_string());
        let (data, password_file) = (home.path().join("postgres"), home.write("pw", &password)?);
        Program::new("initdb", bin.join("initdb"))
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
            ])
            .args(["--locale=C", "--no-sync"])
            .args([format!("--pgdata={}", data.display())])
            .args([format!("--pwfile={}", password_file.display())])
            .run_once(home)
            .await?;
        fs::remove_file(password_file)?;
        let mut program = Program::new("postgres", bin.join("postgres"))
            .args([format!("-D{}", data.display()), format!("-p{port}")])
            .args(["-clisten_addresses=127.0.0.1", "-cunix_socket_directories="])
            .args(["-cmax_connections=300", "-cmax_prepared_transactions=20"])
            // The log would quote the values of a row that a constraint rejects.
            .args(["-clog_error_verbosity=terse"])
            // The fast shutdown: SIGTERM would wait for every client to leave.
            .stopped_by(Signal::INT);
        for setting in settings {
            program = program.args([format!("-c{setting}")]);
        }
        let process = Process::start(home, program);
        let admin_url = format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres");
        process
            .wait_ready(START_TIMEOUT, async || {
                Sql::connect(&admin_url).await.map(drop)
            })
            .await?;
        Ok(Self { process, admin_url })
    }

    /// The address of the database `postgres`, as the superuser.
    pub fn admin_url(&self) -> &str {
        &self.admin_url
    }
}

/// A program that comes with the server, like `pgbench`.
///
/// # Errors
/// If there is no Postgres on this machine, or it has no such program.
pub fn postgres_program(name: &str) -> Result<PathBuf> {
    let program = find_binaries()?.join(name);
    ensure!(
        program.is_file(),
        "{} is missing: install the package of Postgres that has {name}",
        program.display()
    );
    Ok(program)
}

/// The folder of `initdb` and `postgres`: of the newest version in the places where distributions
/// put them, then wherever `PATH` leads.
fn find_binaries() -> Result<PathBuf> {
    let versions = ["/usr/lib/postgresql", "/usr/local/opt", "/opt/homebrew/opt"]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?;
            let version: u32 = name.rsplit('@').next()?.parse().ok()?;
            has_server(&path.join("bin")).then(|| (version, path.join("bin")))
        });
    if let Some((version, bin)) = versions.max() {
        ensure!(
            version >= OLDEST_VERSION,
            "found only Postgres {version}; version {OLDEST_VERSION} or newer is needed"
        );
        return Ok(bin);
    }
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .find(|folder| has_server(folder))
        .context("no Postgres server on this machine: install the package postgresql")
}

fn has_server(folder: &Path) -> bool {
    folder.join("initdb").is_file() && folder.join("postgres").is_file()
}
