//! Streaming replication, and copies of a cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Postgres, find_binaries};
use crate::{processes::Program, sql::Sql, work_dir::WorkDir};

/// The time at which a commit is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// When the primary has stored it. A standby that is promoted may lack it.
    Asynchronous,
    /// When the standby has stored it as well.
    Synchronous,
}

/// The suspended processes of a primary that send WAL to its standbys.
///
/// The drop kills them, because a suspended process does not notice that its cluster has ended. Before it, kill the cluster or
/// [`resume`](Self::resume) them.
#[derive(Debug)]
#[must_use]
pub struct SuspendedReplication(Vec<Pid>);

impl SuspendedReplication {
    /// Lets the standbys catch up.
    pub fn resume(mut self) {
        for sender in self.0.drain(..) {
            let _ = kill_process(sender, Signal::CONT);
        }
    }
}

impl Drop for SuspendedReplication {
    fn drop(&mut self) {
        for sender in &self.0 {
            let _ = kill_process(*sender, Signal::KILL);
        }
    }
}

/// A copy of a cluster's files, from which the cluster can be restored.
#[derive(Debug)]
pub struct BaseBackup {
    data: PathBuf,
    name: String,
}

impl Postgres {
    /// Starts a copy of this cluster as its streaming standby. `name` names its data directory and its log.
    ///
    /// # Errors
    /// If the copy fails, or the standby does not stream.
    pub async fn start_standby(
        &self,
        work_dir: &Arc<WorkDir>,
        name: &str,
        confirmation: Confirmation,
    ) -> Result<Self> {
        let data = self
            .copy_files(work_dir, name, &["--write-recovery-conf"])
            .await?;
        let standby = self.serve_copy(work_dir, name, &data, &[]).await?;
        let primary = Sql::connect(&self.admin_url).await?;
        let with_state = |state: &str| {
            format!(
                "select count(*) from pg_stat_replication where application_name = '{name}' and {state}"
            )
        };
        primary
            .wait_for(&with_state("state = 'streaming'"), 1)
            .await?;
        if confirmation == Confirmation::Synchronous {
            let set = format!("alter system set synchronous_standby_names = '{name}'");
            primary.batch_execute(&set).await?;
            primary.batch_execute("select pg_reload_conf()").await?;
            primary
                .wait_for(&with_state("sync_state = 'sync'"), 1)
                .await?;
        }
        Ok(standby)
    }

    /// Promotes this standby and waits until it accepts writes, on a new timeline.
    ///
    /// # Errors
    /// If it is no standby, or not promoted within a minute.
    pub async fn promote(&self) -> Result<()> {
        let standby = Sql::connect(&self.admin_url).await?;
        let promoted = standby.query_one("select pg_promote()", &[]).await?;
        ensure!(
            promoted.get::<_, bool>(0),
            "the standby was not promoted in time"
        );
        Ok(())
    }

    /// Suspends the processes that send WAL, so that the standbys lag behind.
    ///
    /// # Errors
    /// If no standby is connected.
    pub async fn suspend_replication(&self) -> Result<SuspendedReplication> {
        let primary = Sql::connect(&self.admin_url).await?;
        let senders = primary
            .query("select pid from pg_stat_replication", &[])
            .await?;
        ensure!(!senders.is_empty(), "no standby is connected");
        let mut suspended = SuspendedReplication(Vec::new());
        for sender in senders {
            let pid = Pid::from_raw(sender.get(0)).context("no process id")?;
            kill_process(pid, Signal::STOP)?;
            suspended.0.push(pid);
        }
        Ok(suspended)
    }

    /// Starts an independent copy of this cluster, with the same system identifier and timeline. `name` names its data
    /// directory and its log.
    ///
    /// # Errors
    /// If the copy fails or does not start.
    pub async fn start_clone(&self, work_dir: &Arc<WorkDir>, name: &str) -> Result<Self> {
        let data = self.copy_files(work_dir, name, &[]).await?;
        self.serve_copy(work_dir, name, &data, &[]).await
    }

    /// Copies the files of this cluster for a later [`restore`](Self::restore).
    ///
    /// # Errors
    /// If the copy fails.
    pub async fn back_up(&self, work_dir: &Arc<WorkDir>, name: &str) -> Result<BaseBackup> {
        Ok(BaseBackup {
            data: self.copy_files(work_dir, name, &[]).await?,
            name: name.to_owned(),
        })
    }

    /// Starts a backup of this cluster with the changes before `lsn`, on a new timeline. This cluster must still have all WAL
    /// since the backup, for which the setting `wal_keep_size` provides.
    ///
    /// # Errors
    /// If the copy does not start.
    pub async fn restore(
        &self,
        work_dir: &Arc<WorkDir>,
        backup: BaseBackup,
        lsn: &str,
    ) -> Result<Self> {
        let BaseBackup { data, name } = backup;
        fs::write(data.join("recovery.signal"), "")?;
        let wal = self.data.join("pg_wal");
        let settings = [
            format!("restore_command=cp {}/%f %p", wal.display()),
            format!("recovery_target_lsn={lsn}"),
            "recovery_target_action=promote".to_owned(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let restored = self.serve_copy(work_dir, &name, &data, &settings).await?;
        let sql = Sql::connect(&restored.admin_url).await?;
        sql.wait_for("select pg_is_in_recovery()::int::bigint", 0)
            .await?;
        Ok(restored)
    }

    async fn copy_files(
        &self,
        work_dir: &Arc<WorkDir>,
        name: &str,
        options: &[&str],
    ) -> Result<PathBuf> {
        let data = work_dir.path().join(name);
        let source = format!("{}?application_name={name}", self.admin_url);
        let program = find_binaries()?.join("pg_basebackup");
        Program::new(&format!("{name}-copy"), program)
            .args([format!("--pgdata={}", data.display())])
            .args([format!("--dbname={source}")])
            .args(["--checkpoint=fast", "--wal-method=stream", "--no-sync"])
            .args(options.iter().copied())
            .run_once(work_dir)
            .await?;
        Ok(data)
    }

    async fn serve_copy(
        &self,
        work_dir: &Arc<WorkDir>,
        name: &str,
        data: &Path,
        settings: &[&str],
    ) -> Result<Self> {
        // The copy has the same superuser.
        Self::serve(work_dir, name, data, &self.password, settings).await
    }
}
