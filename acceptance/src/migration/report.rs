use std::fmt;

use devstack::Record;
use lab::{Machine, Table};
use serde::Serialize;

use super::{Mistake, audit::Verdict, stages::StageReport};

/// The report.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) measured_at: String,
    pub(super) machine: Machine,
    pub(super) debezium: &'static str,
    pub(super) backlog_rows: u64,
    pub(super) rows_per_s: u64,
    /// Duration of the transactions that blocked the steps.
    pub(super) long_ms: u64,
    /// The mistake that was made on purpose.
    pub(super) mistake: Option<Mistake>,
    pub(super) stages: Vec<StageReport>,
    /// The longest time without a new event since Debezium stopped.
    pub(super) longest_pause_ms: i64,
    pub(super) verdict: Verdict,
    /// The same events as published by Debezium and by the relay.
    pub(super) sample: Vec<Sample>,
}

/// A record of a sample event.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    by: &'static str,
    partition: i32,
    timestamp_ms: Option<i64>,
    key: String,
    value: Option<String>,
    headers: Vec<(String, String)>,
}

impl From<Record> for Sample {
    fn from(record: Record) -> Self {
        let by = match record.header("ce_id") {
            Some(_) => "outbox-relay",
            None => "Debezium",
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            by,
            partition: record.partition,
            timestamp_ms: record.timestamp_ms,
            key: record.key,
            value: record.payload.map(text),
            headers: record.headers,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.stages())?;
        writeln!(f, "{}", self.events())?;
        writeln!(f, "Sample events as published by Debezium and the relay")?;
        for sample in &self.sample {
            writeln!(
                f,
                "  {}: partition {}, key {}, value {}",
                sample.by,
                sample.partition,
                sample.key,
                sample.value.as_deref().unwrap_or("null")
            )?;
            for (name, value) in &sample.headers {
                writeln!(f, "      {name}: {value}")?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn stages(&self) -> Table {
        let header = [
            "",
            "attempts",
            "duration, ms",
            "last attempt, ms",
            "longest transaction, ms",
            "row to topic: p50, ms",
            "max",
        ];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        let text = |ms: Option<i64>| ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
        rows.extend(self.stages.iter().map(|stage| {
            vec![
                stage.name.clone(),
                stage.attempts.to_string(),
                format!("{:.0}", stage.took_ms),
                format!("{:.0}", stage.last_attempt_ms),
                format!("{:.0}", stage.longest_transaction_ms),
                text(stage.event_p50_ms),
                text(stage.event_max_ms),
            ]
        }));
        Table {
            heading: format!(
                "Stages at {} rows/s after a backlog of {} rows, with blocking transactions of {} ms",
                self.rows_per_s, self.backlog_rows, self.long_ms
            ),
            note: "The longest transaction is the writers' longest one during the stage. A step that did not get its \
                   lock within lock_timeout was retried",
            rows,
        }
    }

    fn events(&self) -> Table {
        let verdict = &self.verdict;
        let pause = usize::try_from(self.longest_pause_ms).unwrap_or_default();
        let rows = [
            ("rows committed", verdict.rows),
            ("  without seq", verdict.rows_without_seq),
            ("records by Debezium", verdict.records_by_debezium),
            ("records by the relay", verdict.records_by_relay),
            ("lost", verdict.lost),
            ("phantom", verdict.phantom),
            ("altered or in another partition", verdict.altered),
            (
                "by the relay for rows without seq",
                verdict.of_rows_without_seq,
            ),
            ("out of order", verdict.audit.inverted),
            (
                "keys whose last record is not the newest version",
                verdict.audit.stale,
            ),
            ("repeated", verdict.repeated()),
            (
                "  by Debezium after Debezium",
                verdict.repeated_by_debezium_of_its_own,
            ),
            (
                "  by Debezium after the relay",
                verdict.repeated_by_debezium_of_the_relay,
            ),
            (
                "  by the relay after the relay",
                verdict.repeated_by_relay_of_its_own,
            ),
            (
                "  by the relay after Debezium",
                verdict.repeated_by_relay_of_debezium,
            ),
            ("  of these, after a newer version", verdict.steps_back),
            ("longest pause during the hand-over, ms", pause),
        ];
        let row = |(name, count): (&str, usize)| vec![name.to_owned(), count.to_string()];
        Table {
            heading: "Events".to_owned(),
            note: "Out of order counts events whose first record comes after a newer version of their key",
            rows: rows.into_iter().map(row).collect(),
        }
    }
}
