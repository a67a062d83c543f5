//! What processes use, from /proc.

use std::fs;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Whose CPU is counted.
#[derive(Clone, Copy, Debug)]
pub struct Processes {
    /// The relay, or whatever publishes in its place.
    pub publisher: u32,
    /// The parent of all processes of Postgres.
    pub postgres: u32,
    /// The broker.
    pub broker: u32,
}

/// CPU seconds, of user and system together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cpu {
    pub publisher: f64,
    /// All its processes, those that ended included.
    pub postgres: f64,
    pub broker: f64,
}

impl Processes {
    /// What they have used since they were started.
    pub fn cpu(&self) -> Result<Cpu> {
        Ok(Cpu {
            publisher: cpu_s(self.publisher)?,
            postgres: family_cpu_s(self.postgres)?,
            broker: cpu_s(self.broker)?,
        })
    }
}

impl Cpu {
    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            publisher: self.publisher - earlier.publisher,
            postgres: self.postgres - earlier.postgres,
            broker: self.broker - earlier.broker,
        }
    }
}

/// CPU seconds of a process.
pub fn cpu_s(pid: u32) -> Result<f64> {
    let stat = Stat::of(pid).with_context(|| format!("process {pid} is gone"))?;
    Ok(stat.own_s(pid))
}

/// The most memory that a process has had resident, in MiB.
pub fn peak_rss_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let kib = status.lines().find_map(|line| {
        let value = line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?;
        value.parse::<f64>().ok()
    });
    Ok(kib.context("no VmHWM in /proc")? / 1024.0)
}

/// CPU seconds of a process and its children, those that ended included.
pub fn family_cpu_s(pid: u32) -> Result<f64> {
    let parent = Stat::of(pid).with_context(|| format!("process {pid} is gone"))?;
    let mut used = parent.own_s(pid) + seconds(parent.ended_children_ticks);
    for entry in fs::read_dir("/proc").context("there is no /proc")? {
        let name = entry?.file_name();
        let child = name.to_str().and_then(|name| name.parse().ok());
        // One that ends in this moment is among its parent's the next time.
        if let Some(stat) = child.and_then(Stat::of)
            && stat.parent == pid
        {
            used += stat.own_s(child.unwrap_or_default());
        }
    }
    Ok(used)
}

/// A part of /proc/PID/stat.
struct Stat {
    parent: u32,
    own_ticks: u64,
    ended_children_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The ticks are hundredths of a second; the scheduler counts nanoseconds, of the threads that
    /// are still there.
    fn own_s(&self, pid: u32) -> f64 {
        seconds(self.own_ticks).max(threads_s(pid).unwrap_or_default())
    }

    fn parse(text: &str) -> Option<Self> {
        // The name of the program, in brackets, can hold anything, brackets too.
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

/// A rate. The clock of /proc ticks in hundredths, so that less than one tick counts as one.
pub fn per(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(0.01)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_is_no_field() {
        let text = "7 (a ) b) S 3 1 1 0 -1 4194304 9 9 9 9 10 20 300 400 20 0 1 0 5 6 7";
        let stat = Stat::parse(text).unwrap();
        let found = (stat.parent, stat.own_ticks, stat.ended_children_ticks);
        assert_eq!(found, (3, 30, 700));
    }
}
