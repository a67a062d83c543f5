use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::progress::step;

/// A folder with the jars that a pom asks for, fetched from Maven Central once for this user (for
/// everybody, where root does it: the plain user who runs the servers must be able to read them).
/// `folder` names it in the cache and says every version, for it is never fetched again.
///
/// # Errors
/// If there is no Maven on this machine, or it fails.
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
    // Into a folder beside it first: a fetch that was cut off must not pass for a whole one.
    let partial = cache.join(format!("devstack/{folder}.partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("can't make {}", partial.display()))?;
    fs::write(partial.join("pom.xml"), pom)?;
    step(
        &format!("fetching {what} from Maven Central"),
        run_maven(&partial),
    )
    .await?;
    match fs::rename(partial.join("jars"), &jars) {
        // Somebody else was faster.
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
        .context("can't run mvn: install the package maven")?;
    ensure!(
        output.status.success(),
        "mvn failed after {:.0?}:\n{}{}",
        started.elapsed(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(())
}
