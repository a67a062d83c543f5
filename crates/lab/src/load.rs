//! Commits at a steady rate, independent of their latency: an open-loop load generator.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use devstack::Sql;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_postgres::Statement;

use crate::Lab;

/// Enough that a slow commit does not delay later ones.
const CONNECTIONS: usize = 16;
const PAYLOAD_BYTES: usize = 200;
/// The limit on overdue commits at the end. If commits are left after that, the machine cannot sustain the rate.
const GRACE: Duration = Duration::from_secs(2);

/// The kind of commit.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Inserts an event only.
    Event,
    /// Writes the next version of an aggregate with its event, so that every record can be audited. A key gets a few
    /// versions and is then not used again: with a long-running transaction, each version of a row is slower to update than
    /// the one before.
    Version,
}

impl Change {
    fn sql(self) -> &'static str {
        match self {
            Self::Event => {
                "insert into outbox
                     (topic, key, event_type, aggregate_version, payload, traceparent)
                 values ($1, $2, 'order_created', $4, $3,
                     '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')"
            }
            Self::Version => {
                "with changed as (
                     insert into aggregates as a (key, version) values ($2, 1)
                     on conflict (key) do update set version = a.version + 1
                     returning version
                 )
                 insert into outbox
                     (topic, key, event_type, aggregate_version, payload, traceparent)
                 select $1, $2, 'order_created', version, $3,
                     '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
                 from changed"
            }
        }
    }

    /// Returns the key of the commit with this number.
    fn key(self, number: u64) -> String {
        let key = match self {
            Self::Event => number % 10_000,
            Self::Version => number / 5_000 * 500 + number % 500,
        };
        format!("00000000-0000-4000-8000-{key:012x}")
    }

    async fn commit(
        self,
        sql: &Sql,
        statement: &Statement,
        topic: &str,
        number: u64,
        due_us: u64,
    ) -> Result<()> {
        let (key, payload) = (self.key(number), payload(due_us));
        let version = i64::try_from(number)?;
        match self {
            Self::Event => {
                sql.execute(statement, &[&topic, &key, &payload, &version])
                    .await?
            }
            Self::Version => sql.execute(statement, &[&topic, &key, &payload]).await?,
        };
        Ok(())
    }
}

/// The schedule of the commits. A commit does not wait for the previous one.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub change: Change,
    pub rate: u64,
    pub warm_up: Duration,
    pub measured_for: Duration,
}

/// Open sessions that run a plan.
pub struct Writers {
    plan: Plan,
    topic: String,
    sessions: Vec<(Sql, Statement)>,
}

/// The number of commits.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteStats {
    pub committed: u64,
    pub committed_while_measured: u64,
}

impl Plan {
    /// Opens the sessions.
    pub async fn prepare(self, lab: &Lab) -> Result<Writers> {
        let mut sessions = Vec::new();
        for _ in 0..CONNECTIONS {
            let sql = lab.sql().await?;
            let insert = sql.prepare(self.change.sql()).await?;
            sessions.push((sql, insert));
        }
        Ok(Writers {
            plan: self,
            topic: lab.topic.name.clone(),
            sessions,
        })
    }

    fn commits(&self) -> u64 {
        let seconds = (self.warm_up + self.measured_for).as_secs_f64();
        (seconds * self.rate as f64) as u64
    }

    fn due_after(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.rate as f64)
    }
}

impl Writers {
    /// Commits rows on schedule, or as soon as a session is free if all are busy.
    pub async fn write(self) -> Result<WriteStats> {
        let plan = self.plan;
        let (due, next) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
        let start = (Instant::now(), SystemTime::now());
        let pace = {
            let due = Arc::clone(&due);
            // A thread sleeps more precisely than tokio's timer, which has millisecond resolution.
            tokio::task::spawn_blocking(move || {
                for number in 0..plan.commits() {
                    let due_at = start.0 + plan.due_after(number);
                    std::thread::sleep(due_at.saturating_duration_since(Instant::now()));
                    due.add_permits(1);
                }
            })
        };
        let mut sessions = JoinSet::new();
        for (sql, insert) in self.sessions {
            let (due, next, topic) = (Arc::clone(&due), Arc::clone(&next), self.topic.clone());
            sessions.spawn(async move {
                let mut written = WriteStats::default();
                while let Ok(permit) = due.acquire().await {
                    permit.forget();
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let due_us = unix_us(start.1 + plan.due_after(number));
                    plan.change
                        .commit(&sql, &insert, &topic, number, due_us)
                        .await?;
                    written.committed += 1;
                    let elapsed = start.0.elapsed();
                    if elapsed >= plan.warm_up && elapsed < plan.warm_up + plan.measured_for {
                        written.committed_while_measured += 1;
                    }
                }
                Ok::<_, anyhow::Error>(written)
            });
        }
        pace.await?;
        tokio::time::sleep(GRACE).await;
        due.close();
        let mut all = WriteStats::default();
        while let Some(written) = sessions.join_next().await {
            let written = written?.context("a writer failed")?;
            all.committed += written.committed;
            all.committed_while_measured += written.committed_while_measured;
        }
        Ok(all)
    }
}

const DUE_FIELD: &[u8] = b"{\"due_us\":";

fn payload(due_us: u64) -> Vec<u8> {
    let mut payload = [DUE_FIELD, due_us.to_string().as_bytes(), b",\"data\":\""].concat();
    payload.resize(PAYLOAD_BYTES - 2, b'x');
    payload.extend_from_slice(b"\"}");
    payload
}

/// Returns when the commit of a row with this payload was scheduled, in microseconds since the Unix epoch.
pub fn due_us(payload: &[u8]) -> Option<u64> {
    let digits = payload.strip_prefix(DUE_FIELD)?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// Converts to microseconds since the Unix epoch.
pub fn unix_us(time: SystemTime) -> u64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_contains_its_scheduled_time() {
        let payload = payload(1_767_323_045_678_901);
        assert_eq!(payload.len(), PAYLOAD_BYTES);
        assert_eq!(due_us(&payload), Some(1_767_323_045_678_901));
        assert_eq!(due_us(b"{}"), None);
    }
}
