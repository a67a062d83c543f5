use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use tokio::sync::Notify;

/// The folder in which a set of servers lives, and the guard that clears it away.
///
/// The guard is a small process of its own that waits for the end of this one, however that comes
/// about (it reads a pipe that only this process holds open), then ends what still runs and deletes
/// the folder.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    user: Option<PlainUser>,
    guard: Child,
    changed: Arc<Notify>,
}

/// Who runs the servers when this process is root: Postgres refuses to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainUser {
    uid: u32,
    gid: u32,
}

/// Ends only processes whose command line names the folder: a number may be in use again.
const GUARD: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
end_all() {
  left=0
  for file in "$1"/run/*.pid; do
    read -r pid signal < "$file" || continue
    if [ -r "/proc/$pid/cmdline" ]; then command=$(tr '\0' ' ' < "/proc/$pid/cmdline")
    else command=$(ps -o command= -p "$pid"); fi
    case $command in *"$1"*) left=1; kill "-${2:-$signal}" "$pid" ;; esac
  done
}
end_all "$1"
for _ in $(seq 50); do [ "$left" = 0 ] && break; sleep 0.1; end_all "$1" 0; done
[ "$left" = 0 ] || end_all "$1" KILL
for _ in 1 2 3 4 5; do rm -rf "$1" && break; sleep 0.2; done
"#;

impl Home {
    /// A new folder in the system's folder for temporary files.
    ///
    /// # Errors
    /// If the folder can't be made, or this is root and the system has no plain user to step down to.
    pub fn new() -> Result<Self> {
        let user = PlainUser::to_step_down_to()?;
        let path = tempfile::Builder::new()
            .prefix("devstack-")
            .tempdir()
            .context("no folder for the servers")?
            .keep();
        for folder in [
            path.clone(),
            path.join("bin"),
            path.join("logs"),
            path.join("run"),
        ] {
            fs::create_dir_all(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            if let Some(user) = user {
                chown(&folder, Some(user.uid), Some(user.gid))?;
            }
        }
        let guard = Command::new("sh")
            .args(["-c", GUARD, "devstack-guard"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the reach of a Ctrl-C at the terminal, which is meant for this process.
            .process_group(0)
            .spawn()
            .context("can't run sh, which clears up after the servers")?;
        Ok(Self {
            path,
            user,
            guard,
            changed: Arc::default(),
        })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of what the programs have written to their standard output and error.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// What the program of this name has written to its standard output and error.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Where the id of the running process of this name stands, with the signal that ends it.
    pub(crate) fn pid_file(&self, name: &str) -> PathBuf {
        self.path.join("run").join(format!("{name}.pid"))
    }

    /// Told whenever a process has started or ended.
    pub fn changed(&self) -> &Arc<Notify> {
        &self.changed
    }

    /// Copies an executable into this folder, once: the copy stays as it is while the original is rebuilt, and the
    /// plain user can reach it.
    ///
    /// # Errors
    /// If there is no such file, or no room.
    pub fn stage(&self, executable: &Path) -> Result<PathBuf> {
        let name = executable.file_name().context("an executable has a name")?;
        let copy = self.path.join("bin").join(name);
        // It may be running, and then it can't be written to.
        if copy.exists() {
            return Ok(copy);
        }
        fs::copy(executable, &copy).with_context(|| {
            format!(
                "can't copy {}: run `cargo build --workspace` first",
                executable.display()
            )
        })?;
        Ok(copy)
    }

    /// Writes a file that the servers can read and write.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        if let Some(user) = self.user {
            chown(&path, Some(user.uid), Some(user.gid))?;
        }
        Ok(path)
    }

    /// Makes `command` run as the plain user, out of reach of the terminal's signals.
    pub(crate) fn confine(&self, command: &mut tokio::process::Command) {
        command
            .current_dir(&self.path)
            .env("HOME", &self.path)
            .process_group(0);
        if let Some(PlainUser { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

impl PlainUser {
    fn to_step_down_to() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").context("can't read /etc/passwd")?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| {
                Self::parse(users.lines().find(|l| l.starts_with(&format!("{name}:")))?)
            })
            .map(Some)
            .context("the servers don't run as root, and there is no user postgres or nobody")
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':').skip(2);
        Some(Self {
            uid: fields.next()?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_runs_can_be_staged_again() -> Result<()> {
        let home = Home::new()?;
        let staged = home.stage(Path::new("/bin/sleep"))?;
        let mut running = Command::new(&staged).arg("60").spawn()?;
        let again = home.stage(Path::new("/bin/sleep"));
        running.kill()?;
        running.wait()?;
        assert_eq!(again?, staged);
        Ok(())
    }
}
