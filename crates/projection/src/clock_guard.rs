//! Decides if the database's clock can be trusted to delete expired rows.
//!
//! The age of a row is only as good as the clock that dates it. A clock that jumps ahead makes every row look expired.
//! Keeping a row too long is harmless; deleting it early is not.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::{QueryResult, define_sql_function};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use tokio::time::Instant;

/// The maximum difference of two clocks, or of a clock and the monotonic one. Far above what time synchronization leaves.
const MAX_SKEW: TimeDelta = TimeDelta::minutes(5);

define_sql_function! {
    fn clock_timestamp() -> Timestamptz;
}

/// Compares the database's clock with this process's before rows are deleted by age.
#[derive(Debug)]
pub struct ClockGuard {
    /// The rows that are kept, for the log.
    rows: &'static str,
    retention: Duration,
    last: Option<Reading>,
    /// Set by a jump: rows written before it have a wrong age until then.
    untrusted_until: Option<Instant>,
    verdict: Verdict,
}

/// The clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    database: DateTime<Utc>,
    service: DateTime<Utc>,
    monotonic: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Trusted,
    /// The database's clock is ahead of this process's by this much.
    Skewed(TimeDelta),
    /// A clock has jumped within the retention.
    Jumped,
}

impl ClockGuard {
    /// Creates a guard for `rows`, which are deleted after `retention`.
    pub fn new(rows: &'static str, retention: Duration) -> Self {
        Self {
            rows,
            retention,
            last: None,
            untrusted_until: None,
            verdict: Verdict::Trusted,
        }
    }

    /// Returns the time before which rows are expired, or `None` while the clocks can't be trusted. Compare rows with
    /// this time and not with `now()`, which may have jumped since.
    ///
    /// # Errors
    /// Database errors.
    pub async fn read_cutoff(
        &mut self,
        conn: &mut AsyncPgConnection,
    ) -> QueryResult<Option<DateTime<Utc>>> {
        let database = diesel::select(clock_timestamp()).get_result(conn).await?;
        let verdict = self.judge(Reading {
            database,
            service: Utc::now(),
            monotonic: Instant::now(),
        });
        self.log_change(verdict);
        if verdict != Verdict::Trusted {
            return Ok(None);
        }
        let retention = TimeDelta::from_std(self.retention).ok();
        Ok(retention.and_then(|retention| database.checked_sub_signed(retention)))
    }

    fn judge(&mut self, now: Reading) -> Verdict {
        if self.last.is_some_and(|last| now.has_jumped_since(&last)) {
            self.untrusted_until = now.monotonic.checked_add(self.retention);
        }
        self.last = Some(now);
        let skew = now.database - now.service;
        if skew.abs() > MAX_SKEW {
            Verdict::Skewed(skew)
        } else if self.untrusted_until.is_some_and(|end| now.monotonic < end) {
            Verdict::Jumped
        } else {
            Verdict::Trusted
        }
    }

    /// Logs a verdict if it differs in kind from the previous one.
    fn log_change(&mut self, verdict: Verdict) {
        let previous = std::mem::replace(&mut self.verdict, verdict);
        if std::mem::discriminant(&previous) == std::mem::discriminant(&verdict) {
            return;
        }
        let rows = self.rows;
        match verdict {
            Verdict::Trusted => tracing::info!(rows, "clocks agree, deleting expired rows again"),
            Verdict::Skewed(skew) => tracing::warn!(
                rows,
                skew_s = skew.num_seconds(),
                "clocks of database and service disagree, keeping expired rows"
            ),
            Verdict::Jumped => tracing::warn!(
                rows,
                retention_s = self.retention.as_secs(),
                "a clock has jumped, keeping expired rows for the retention"
            ),
        }
    }
}

impl Reading {
    fn has_jumped_since(&self, last: &Self) -> bool {
        let elapsed = TimeDelta::from_std(self.monotonic - last.monotonic);
        let elapsed = elapsed.unwrap_or(TimeDelta::MAX);
        [self.database - last.database, self.service - last.service]
            .into_iter()
            .any(|passed| {
                passed
                    .checked_sub(&elapsed)
                    .is_none_or(|jump| jump.abs() > MAX_SKEW)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600;
    /// Minutes since the start, errors of the database's and the service's clock in seconds, and the verdict.
    type Step = (i64, i64, i64, Verdict);

    const SKEWED: Verdict = Verdict::Skewed(TimeDelta::zero());

    #[test]
    fn rows_are_deleted_only_by_clocks_that_agree_and_have_not_jumped() {
        use Verdict::{Jumped, Trusted};
        let cases: [(&str, &[Step]); 8] = [
            ("right", &[(0, 0, 0, Trusted), (1, 0, 0, Trusted)]),
            (
                "slightly wrong",
                &[(0, 299, 0, Trusted), (1, 0, 299, Trusted)],
            ),
            (
                "database ahead",
                &[(0, 24 * HOUR, 0, SKEWED), (1, 24 * HOUR, 0, SKEWED)],
            ),
            ("database behind", &[(0, -301, 0, SKEWED)]),
            ("service ahead", &[(0, 0, 6 * 60, SKEWED)]),
            (
                "database ahead for a minute",
                &[
                    (0, 0, 0, Trusted),
                    (1, 24 * HOUR, 0, SKEWED),
                    (2, 0, 0, Jumped),
                    (24 * 60 + 1, 0, 0, Jumped),
                    (24 * 60 + 2, 0, 0, Trusted),
                ],
            ),
            (
                "both ahead",
                &[
                    (0, 0, 0, Trusted),
                    (1, 24 * HOUR, 24 * HOUR, Jumped),
                    (24 * 60, 24 * HOUR, 24 * HOUR, Jumped),
                    (24 * 60 + 1, 24 * HOUR, 24 * HOUR, Trusted),
                ],
            ),
            (
                "both back again",
                &[
                    (0, -HOUR, -HOUR, Trusted),
                    (60, 0, 0, Jumped),
                    (25 * 60, 0, 0, Trusted),
                ],
            ),
        ];
        let (time, monotonic) = (Utc::now(), Instant::now());
        for (what, steps) in cases {
            let mut guard = ClockGuard::new("responses", Duration::from_hours(24));
            for &(minutes, database_error, service_error, expected) in steps {
                let elapsed = TimeDelta::minutes(minutes);
                let verdict = guard.judge(Reading {
                    database: time + elapsed + TimeDelta::seconds(database_error),
                    service: time + elapsed + TimeDelta::seconds(service_error),
                    monotonic: monotonic + elapsed.to_std().unwrap(),
                });
                let is_expected =
                    std::mem::discriminant(&verdict) == std::mem::discriminant(&expected);
                assert!(is_expected, "{what}, minute {minutes}: {verdict:?}");
            }
        }
    }
}
