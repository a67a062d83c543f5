//! Compares the committed rows with the records in the topic.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use devstack::{Audit, Auditor, Record, Sql};
use serde::{Deserialize, Serialize};

use super::writers::LONG_KEY;

/// A committed row of the outbox.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) key: String,
    pub(super) payload: String,
    /// The relay publishes only rows with a seq.
    pub(super) has_seq: bool,
}

/// The fields of a payload that the audit uses.
#[derive(Deserialize)]
struct Payload {
    version: i64,
    at_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Publisher {
    Debezium,
    Relay,
}

/// The records of an event so far.
struct Occurrences {
    partition: i32,
    publishers: Vec<Publisher>,
}

/// The result of an audit.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub(super) rows: usize,
    /// Rows from before the defaults, which only Debezium publishes.
    pub(super) rows_without_seq: usize,
    pub(super) records_by_debezium: usize,
    pub(super) records_by_relay: usize,
    /// Committed rows without a record.
    pub(super) lost: usize,
    /// Records without a committed row.
    pub(super) phantom: usize,
    /// Records whose key or value differs from their row, or whose partition differs from the first
    /// record of their event.
    pub(super) altered: usize,
    /// Records by the relay of rows without a seq.
    pub(super) of_rows_without_seq: usize,
    /// Repeats of an event that the same publisher or only the other one wrote before.
    pub(super) repeated_by_debezium_of_its_own: usize,
    pub(super) repeated_by_debezium_of_the_relay: usize,
    pub(super) repeated_by_relay_of_its_own: usize,
    pub(super) repeated_by_relay_of_debezium: usize,
    /// Repeats after a newer version of their key. A consumer that ignores versions would go back to
    /// an older state.
    pub(super) steps_back: usize,
    /// The audit by aggregate versions; `inverted` counts first occurrences after a newer version.
    pub(super) audit: Audit,
}

/// The first record of an event.
pub(super) struct FirstRecord {
    /// By the broker's clock.
    pub(super) at_ms: i64,
    /// Time from the row to the topic.
    pub(super) latency_ms: i64,
    /// From a transaction that stays open on purpose.
    pub(super) from_long_transaction: bool,
}

impl Verdict {
    /// Returns whether there are no faults. Repeats are not faults.
    pub(super) fn is_clean(&self) -> bool {
        let faults = [
            self.lost,
            self.phantom,
            self.altered,
            self.of_rows_without_seq,
        ];
        faults == [0; 4] && self.audit.is_clean()
    }

    pub(super) fn repeated(&self) -> usize {
        [
            self.repeated_by_debezium_of_its_own,
            self.repeated_by_debezium_of_the_relay,
            self.repeated_by_relay_of_its_own,
            self.repeated_by_relay_of_debezium,
        ]
        .iter()
        .sum()
    }
}

/// Loads all rows of the outbox.
pub(super) async fn load_rows(sql: &Sql) -> Result<Vec<Row>> {
    let query = "select id::text, aggregateid, payload::text, seq is not null from outboxevent
                 where aggregatetype = 'order'";
    let rows = sql.query(query, &[]).await?;
    let row = |row: &tokio_postgres::Row| Row {
        id: row.get(0),
        key: row.get(1),
        payload: row.get(2),
        has_seq: row.get(3),
    };
    Ok(rows.iter().map(row).collect())
}

/// Compares the rows with the records, which are in partition order. Also returns the first record of
/// each event in time order.
pub(super) fn audit(rows: &[Row], records: &[Record]) -> Result<(Verdict, Vec<FirstRecord>)> {
    let mut verdict = Verdict {
        rows: rows.len(),
        rows_without_seq: rows.iter().filter(|row| !row.has_seq).count(),
        ..Verdict::default()
    };
    let by_id: HashMap<&str, &Row> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
    let mut seen: HashMap<&str, Occurrences> = HashMap::new();
    let mut highest: HashMap<&str, i64> = HashMap::new();
    let (mut auditor, mut first_records) = (Auditor::default(), Vec::new());
    for record in records {
        let publisher = match record.header("ce_id") {
            Some(_) => Publisher::Relay,
            None => Publisher::Debezium,
        };
        match publisher {
            Publisher::Debezium => verdict.records_by_debezium += 1,
            Publisher::Relay => verdict.records_by_relay += 1,
        }
        let id = record.header("id").context("a record has no id header")?;
        let Some(row) = by_id.get(id) else {
            verdict.phantom += 1;
            continue;
        };
        let payload = record.payload.as_deref().unwrap_or_default();
        let is_as_committed = record.key == row.key && payload == row.payload.as_bytes();
        verdict.of_rows_without_seq += usize::from(publisher == Publisher::Relay && !row.has_seq);
        let Payload { version, at_ms } = serde_json::from_str(&row.payload)?;
        let newest = highest.entry(&row.key).or_default();
        if let Some(event) = seen.get_mut(id) {
            let is_moved = event.partition != record.partition;
            verdict.altered += usize::from(is_moved || !is_as_committed);
            verdict.steps_back += usize::from(version < *newest);
            let is_own = event.publishers.contains(&publisher);
            *match (publisher, is_own) {
                (Publisher::Debezium, true) => &mut verdict.repeated_by_debezium_of_its_own,
                (Publisher::Debezium, false) => &mut verdict.repeated_by_debezium_of_the_relay,
                (Publisher::Relay, true) => &mut verdict.repeated_by_relay_of_its_own,
                (Publisher::Relay, false) => &mut verdict.repeated_by_relay_of_debezium,
            } += 1;
            event.publishers.push(publisher);
        } else {
            verdict.altered += usize::from(!is_as_committed);
            let event = Occurrences {
                partition: record.partition,
                publishers: vec![publisher],
            };
            seen.insert(&row.id, event);
            let now_ms = record.timestamp_ms.unwrap_or_default();
            first_records.push(FirstRecord {
                at_ms: now_ms,
                latency_ms: now_ms - at_ms,
                from_long_transaction: row.key.starts_with(LONG_KEY),
            });
        }
        *newest = version.max(*newest);
        auditor.add(&row.key, version);
    }
    verdict.lost = rows.len() - seen.len();
    verdict.audit = auditor.finish(newest_versions(rows)?);
    first_records.sort_by_key(|first| first.at_ms);
    Ok((verdict, first_records))
}

fn newest_versions(rows: &[Row]) -> Result<HashMap<String, i64>> {
    let mut newest: HashMap<String, i64> = HashMap::new();
    for row in rows {
        let Payload { version, .. } = serde_json::from_str(&row.payload)?;
        let known = newest.entry(row.key.clone()).or_default();
        *known = version.max(*known);
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns rows with these versions of one key. The first has no seq.
    fn committed(versions: i64) -> Vec<Row> {
        let row = |version: i64| Row {
            id: format!("id-{version}"),
            key: "k".to_owned(),
            payload: format!("{{\"version\":{version},\"at_ms\":{version}}}"),
            has_seq: version > 1,
        };
        (1..=versions).map(row).collect()
    }

    fn record(publisher: Publisher, version: i64) -> Record {
        let mut headers = vec![("id".to_owned(), format!("id-{version}"))];
        if publisher == Publisher::Relay {
            headers.push(("ce_id".to_owned(), format!("id-{version}")));
        }
        Record {
            partition: 0,
            offset: 0,
            timestamp_ms: Some(10),
            key: "k".to_owned(),
            payload: Some(format!("{{\"version\":{version},\"at_ms\":{version}}}").into_bytes()),
            headers,
        }
    }

    /// Audits three rows and records of these versions, first by Debezium and then by the relay.
    fn verdict(by_debezium: &[i64], by_relay: &[i64]) -> Verdict {
        let debezium = by_debezium.iter().map(|v| record(Publisher::Debezium, *v));
        let relay = by_relay.iter().map(|v| record(Publisher::Relay, *v));
        let records: Vec<Record> = debezium.chain(relay).collect();
        audit(&committed(3), &records).unwrap().0
    }

    #[test]
    fn repeats_are_counted_by_publisher_and_are_no_faults() {
        let found = verdict(&[1, 2, 2, 3], &[2, 3, 3]);
        assert!(found.is_clean(), "{found:?}");
        assert_eq!(found.repeated_by_debezium_of_its_own, 1);
        assert_eq!(found.repeated_by_relay_of_debezium, 2);
        assert_eq!(found.repeated_by_relay_of_its_own, 1);
        assert_eq!((found.repeated(), found.steps_back), (4, 1));
    }

    #[test]
    fn every_kind_of_fault_is_detected() {
        assert!(verdict(&[1, 2], &[2, 3]).is_clean());
        let lost = verdict(&[1], &[3]);
        assert_eq!((lost.lost, lost.audit.lost, lost.is_clean()), (1, 1, false));
        let phantom = verdict(&[1, 4], &[2, 3]);
        assert_eq!((phantom.phantom, phantom.is_clean()), (1, false));
        let inverted = verdict(&[1, 3], &[2, 3]);
        assert_eq!((inverted.audit.inverted, inverted.is_clean()), (1, false));
        let stale = verdict(&[1], &[2, 3, 2]);
        assert_eq!((stale.audit.stale, stale.is_clean()), (1, false));
        let not_ours = verdict(&[1], &[1, 2, 3]);
        assert_eq!(
            (not_ours.of_rows_without_seq, not_ours.is_clean()),
            (1, false)
        );
        let mut altered = record(Publisher::Debezium, 1);
        altered.payload = Some(b"{}".to_vec());
        let records = [
            altered,
            record(Publisher::Relay, 2),
            record(Publisher::Relay, 3),
        ];
        let (altered, _) = audit(&committed(3), &records).unwrap();
        assert_eq!((altered.altered, altered.is_clean()), (1, false));
    }
}
