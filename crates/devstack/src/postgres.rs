mod replication;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

pub use self::replication::{BaseBackup, Confirmation, SuspendedReplication};
use crate::{
    certificates::{Authority, Issued},
    ports::free_port,
    processes::{Process, Program},
    sql::Sql,
    work_dir::WorkDir,
};

/// The oldest supported major version.
const OLDEST_VERSION: u32 = 15;
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A temporary Postgres cluster.
#[derive(Debug)]
pub struct Postgres {
    pub process: Process,
    data: PathBuf,
    password: String,
    address: String,
    admin_url: String,
}

impl Postgres {
    /// Creates a cluster in `work_dir` and starts it; `settings` are `name=value` configuration parameters.
    ///
    /// # Errors
    /// If Postgres is not installed, or fails to start.
    pub async fn start(work_dir: &Arc<WorkDir>, settings: &[&str]) -> Result<Self> {
        let password = uuid::Uuid::new_v4().simple().to_string();
        let (data, password_file) = (
            work_dir.path().join("postgres"),
            work_dir.write("pw", &password)?,
        );
        Program::new("initdb", find_binaries()?.join("initdb"))
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
            ])
            .args(["--locale=C", "--no-sync"])
            .args([format!("--pgdata={}", data.display())])
            .args([format!("--pwfile={}", password_file.display())])
            .run_once(work_dir)
            .await?;
        fs::remove_file(password_file)?;
        Self::serve(work_dir, "postgres", &data, &password, settings).await
    }

    /// Starts the server of a data directory. `name` names its log.
    async fn serve(
        work_dir: &Arc<WorkDir>,
        name: &str,
        data: &Path,
        password: &str,
        settings: &[&str],
    ) -> Result<Self> {
        let port = free_port()?;
        let mut program = Program::new(name, find_binaries()?.join("postgres"))
            .args([format!("-D{}", data.display()), format!("-p{port}")])
            .args(["-clisten_addresses=127.0.0.1", "-cunix_socket_directories="])
            .args(["-cmax_connections=300", "-cmax_prepared_transactions=20"])
            // Otherwise the log would quote the values of rows that violate a constraint.
            .args(["-clog_error_verbosity=terse"])
            // Fast shutdown; SIGTERM would wait for all clients to disconnect.
            .stop_signal(Signal::INT);
        for setting in settings {
            program = program.args([format!("-c{setting}")]);
        }
        let process = Process::start(work_dir, program);
        let address = format!("127.0.0.1:{port}");
        let admin_url = format!("postgres://postgres:{password}@{address}/postgres");
        process
            .wait_ready(START_TIMEOUT, async || {
                Sql::connect(&admin_url).await.map(drop)
            })
            .await?;
        Ok(Self {
            process,
            data: data.to_owned(),
            password: password.to_owned(),
            address,
            admin_url,
        })
    }

    /// Starts a server with TLS, a certificate that `authority` has issued, and this `pg_hba.conf`. Writes `ca.crt`, `server.crt`
    /// and `server.key` to `work_dir`.
    ///
    /// # Errors
    /// If a file can't be written, or the server fails to start.
    pub async fn start_with_tls(
        work_dir: &Arc<WorkDir>,
        authority: &Authority,
        issued: &Issued,
        hba: &str,
    ) -> Result<Self> {
        let ca = work_dir.write("ca.crt", &authority.pem)?;
        let server = issued.write(work_dir, "server")?;
        let hba = work_dir.write("pg_hba.conf", hba)?;
        let settings = [
            "fsync=off".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_ca_file={}", ca.display()),
            format!("ssl_cert_file={}", server.certificate.display()),
            format!("ssl_key_file={}", server.key.display()),
            format!("hba_file={}", hba.display()),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        Self::start(work_dir, &settings).await
    }

    /// Its `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The superuser's URL of the database `postgres`.
    pub fn admin_url(&self) -> &str {
        &self.admin_url
    }
}

/// Returns the path of a program of the Postgres installation, such as `pgbench`.
///
/// # Errors
/// If Postgres or the program is not installed.
pub fn postgres_program(name: &str) -> Result<PathBuf> {
    let program = find_binaries()?.join(name);
    ensure!(
        program.is_file(),
        "{} does not exist; install the Postgres package that contains {name}",
        program.display()
    );
    Ok(program)
}

/// Returns the directory of `initdb` and `postgres`: the newest version in the directories of the common distributions,
/// or else the first in `PATH`.
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
            "found Postgres {version}; install version {OLDEST_VERSION} or newer"
        );
        return Ok(bin);
    }
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .find(|folder| has_server(folder))
        .context("Postgres is not installed; install the package postgresql")
}

fn has_server(folder: &Path) -> bool {
    folder.join("initdb").is_file() && folder.join("postgres").is_file()
}
