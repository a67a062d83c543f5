//! CPU and memory usage of processes, from /proc.

use std::fs;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The processes whose CPU usage is measured.
#[derive(Clone, Copy, Debug)]
pub struct Processes {
    /// The relay, or another publisher.
    pub publisher: u32,
    /// The postmaster, the parent of all Postgres processes.
    pub postgres: u32,
    pub broker: u32,
}

/// CPU seconds, user and system.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cpu {
    pub publisher: f64,
    /// All Postgres processes, including exited ones.
    pub postgres: f64,
    pub broker: f64,
}

impl Processes {
    /// Returns the usage since the processes started.
    pub fn cpu(&self) -> Result<Cpu> {
        Ok(Cpu {
            publisher: cpu_s(self.publisher)?,
            postgres: family_cpu_s(self.postgres)?,
            broker: cpu_s(self.broker)?,
        })
    }
}

impl Cpu {
    /// Returns the usage since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            publisher: self.publisher - earlier.publisher,
            postgres: self.postgres - earlier.postgres,
            broker: self.broker - earlier.broker,
        }
    }
}

/// Returns the CPU seconds of a process.
pub fn cpu_s(pid: u32) -> Result<f64> {
    let stat = Stat::of(pid).with_context(|| format!("process {pid} does not exist"))?;
    Ok(stat.own_s(pid))
}

/// Returns the peak resident memory of a process in MiB.
pub fn peak_rss_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} does not exist"))?;
    let kib = status.lines().find_map(|line| {
        let value = line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?;
        value.parse::<f64>().ok()
    });
    Ok(kib.context("no VmHWM in /proc")? / 1024.0)
}

/// Returns the CPU seconds of a process and its children, including exited ones.
pub fn family_cpu_s(pid: u32) -> Result<f64> {
    let parent = Stat::of(pid).with_context(|| format!("process {pid} does not exist"))?;
    let mut used = parent.own_s(pid) + seconds(parent.ended_children_ticks);
    for entry in fs::read_dir("/proc").context("failed to read /proc")? {
        let name = entry?.file_name();
        let child = name.to_str().and_then(|name| name.parse().ok());
        // A child that exits now is counted with its parent the next time.
        if let Some(stat) = child.and_then(Stat::of)
            && stat.parent == pid
        {
            used += stat.own_s(child.unwrap_or_default());
        }
    }
    Ok(used)
}

/// The used fields of /proc/PID/stat.
struct Stat {
    parent: u32,
    own_ticks: u64,
    ended_children_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The larger of two sources: ticks are hundredths of a second, the scheduler's nanoseconds exclude exited threads.
    fn own_s(&self, pid: u32) -> f64 {
        seconds(self.own_ticks).max(threads_s(pid).unwrap_or_default())
    }

    fn parse(text: &str) -> Option<Self> {
        // The program name in parentheses may itself contain parentheses.
        let (_, after_name) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = after_name.split(' ').collect();
        let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            parent: field(1)?.try_into().ok()?,
            own_ticks: field(11)? + field(12)?,
            ended_children_ticks: field(13)? + field(14)?,
        })
    }
}

fn threads_s(pid: u32) -> Option<f64> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let stat = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += stat.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 / 1e9)
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Returns a rate. Less than one tick, a hundredth of a second, counts as one.
pub fn per(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(0.01)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parentheses_in_a_program_name_are_not_fields() {
        let text = "7 (a ) b) S 3 1 1 0 -1 4194304 9 9 9 9 10 20 300 400 20 0 1 0 5 6 7";
        let stat = Stat::parse(text).unwrap();
        let found = (stat.parent, stat.own_ticks, stat.ended_children_ticks);
        assert_eq!(found, (3, 30, 700));
    }
}
