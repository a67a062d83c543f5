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

/// The temporary working directory of a set of servers, and the guard process that cleans up after them.
///
/// The guard reads a pipe that only this process holds open, and thus notices when this process ends, even by SIGKILL. It
/// then stops the remaining servers and deletes the directory.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    user: Option<UnprivilegedUser>,
    guard: Child,
    changed: Arc<Notify>,
}

/// The user that runs the servers if this process is root, which Postgres does not allow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnprivilegedUser {
    uid: u32,
    gid: u32,
}

/// Stops only processes whose command line contains the directory: a process id may have been reused.
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

impl WorkDir {
    /// Creates a directory in the system's temporary directory.
    ///
    /// # Errors
    /// If the directory cannot be created, or this process is root and there is no unprivileged user for the servers.
    pub fn new() -> Result<Self> {
        let user = UnprivilegedUser::for_servers()?;
        let path = tempfile::Builder::new()
            .prefix("devstack-")
            .tempdir()
            .context("failed to create a directory for the servers")?
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
            // Does not receive the terminal's Ctrl-C.
            .process_group(0)
            .spawn()
            .context("failed to run sh, which cleans up after the servers")?;
        Ok(Self {
            path,
            user,
            guard,
            changed: Arc::default(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the logs: standard output and standard error of each program.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The log of a program.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The file with the process id of a running program and the signal that stops it.
    pub(crate) fn pid_file(&self, name: &str) -> PathBuf {
        self.path.join("run").join(format!("{name}.pid"))
    }

    /// Notified whenever a process starts or exits.
    pub fn changed(&self) -> &Arc<Notify> {
        &self.changed
    }

    /// Copies an executable into the directory once. The copy does not change during a rebuild, and the unprivileged user
    /// can run it.
    ///
    /// # Errors
    /// If the file does not exist or cannot be copied.
    pub fn stage(&self, executable: &Path) -> Result<PathBuf> {
        let name = executable.file_name().context("an executable has a name")?;
        let copy = self.path.join("bin").join(name);
        // A running executable cannot be overwritten.
        if copy.exists() {
            return Ok(copy);
        }
        fs::copy(executable, &copy).with_context(|| {
            format!(
                "failed to copy {}; run `cargo build --workspace`",
                executable.display()
            )
        })?;
        Ok(copy)
    }

    /// Writes a file owned by the servers' user.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        if let Some(user) = self.user {
            chown(&path, Some(user.uid), Some(user.gid))?;
        }
        Ok(path)
    }

    /// Configures `command` to run as the unprivileged user, outside the terminal's process group.
    pub(crate) fn confine(&self, command: &mut tokio::process::Command) {
        command
            .current_dir(&self.path)
            .env("HOME", &self.path)
            .process_group(0);
        if let Some(UnprivilegedUser { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

impl UnprivilegedUser {
    fn for_servers() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").context("failed to read /etc/passwd")?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| {
                Self::parse(users.lines().find(|l| l.starts_with(&format!("{name}:")))?)
            })
            .map(Some)
            .context("the servers cannot run as root; create a user named postgres or nobody")
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
    fn a_running_program_can_be_staged_again() -> Result<()> {
        let work_dir = WorkDir::new()?;
        let staged = work_dir.stage(Path::new("/bin/sleep"))?;
        let mut running = Command::new(&staged).arg("60").spawn()?;
        let again = work_dir.stage(Path::new("/bin/sleep"));
        running.kill()?;
        running.wait()?;
        assert_eq!(again?, staged);
        Ok(())
    }
}
