use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::progress::step;

/// Returns a directory with the dependencies of a POM, fetched from Maven Central once per user. For root the cache is
/// `/var/cache`, because the unprivileged user that runs the servers must be able to read it. `folder` is the name in the
/// cache; it must contain all versions, because it is never refreshed.
///
/// # Errors
/// If Maven is not installed or fails.
pub async fn fetch_jars(what: &str, folder: &str, pom: &str) -> Result<PathBuf> {
    let cache = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/cache")
    } else {
        env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set")?
    };
    let jars = cache.join("devstack").join(folder);
    if jars.is_dir() {
        return Ok(jars);
    }
    // First into a temporary directory: an interrupted fetch must not count as complete.
    let partial = cache.join(format!("devstack/{folder}.partial-{}", std::process::id()));
    fs::create_dir_all(&partial)
        .with_context(|| format!("failed to create {}", partial.display()))?;
    fs::write(partial.join("pom.xml"), pom)?;
    step(
        &format!("fetching {what} from Maven Central"),
        run_maven(&partial),
    )
    .await?;
    match fs::rename(partial.join("jars"), &jars) {
        // Another process was faster.
        Err(_) if jars.is_dir() => {}
        result => result?,
    }
    fs::remove_dir_all(partial)?;
    Ok(jars)
}

async fn run_maven(folder: &Path) -> Result<()> {
    let started = Instant::now();
    let output = Command::new("mvn")
        .args(["--quiet", "--batch-mode", "dependency:copy-dependencies"])
        .args(["-DoutputDirectory=jars", "-DincludeScope=runtime"])
        .current_dir(folder)
        .kill_on_drop(true)
        .output()
        .await
        .context("failed to run mvn; install the package maven")?;
    ensure!(
        output.status.success(),
        "mvn failed after {:.0?}:\n{}{}",
        started.elapsed(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(())
}
