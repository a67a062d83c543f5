use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use serde::Serialize;

use crate::records::Record;

/// The differences between a table and the topic with its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Versions in the table.
    pub versions: usize,
    /// Records in the topic.
    pub records: usize,
    /// Versions without a record.
    pub lost: usize,
    /// Published versions that the table does not have.
    pub phantom: usize,
    /// First records of a version that follow a later version of their key.
    pub inverted: usize,
    /// Keys whose last record is not their newest version: compaction would keep the wrong one.
    pub stale: usize,
    /// Duplicates, harmless to consumers that compare versions.
    pub repeated: usize,
}

/// Audits a topic record by record. Keeps only the highest, latest and missing versions of each key.
#[derive(Debug, Default)]
pub struct Auditor {
    keys: HashMap<String, KeyState>,
    audit: Audit,
}

#[derive(Debug, Default)]
struct KeyState {
    highest: i64,
    latest: i64,
    /// Versions below the highest without a record yet.
    missing: BTreeSet<i64>,
}

impl Auditor {
    /// Adds the next record.
    pub fn add(&mut self, key: &str, version: i64) {
        self.audit.records += 1;
        if !self.keys.contains_key(key) {
            self.keys.insert(key.to_owned(), KeyState::default());
        }
        let Some(state) = self.keys.get_mut(key) else {
            return;
        };
        if version > state.highest {
            state.missing.extend(state.highest + 1..version);
            state.highest = version;
        } else if state.missing.remove(&version) {
            self.audit.inverted += 1;
        } else {
            self.audit.repeated += 1;
        }
        state.latest = version;
    }

    /// Returns the number of distinct versions so far.
    pub fn distinct_versions(&self) -> usize {
        self.audit.records - self.audit.repeated
    }

    /// Compares the records with `rows`: pairs of a key and its newest version.
    pub fn finish(mut self, rows: impl IntoIterator<Item = (String, i64)>) -> Audit {
        let audit = &mut self.audit;
        for (key, newest) in rows {
            let state = self.keys.remove(&key).unwrap_or_default();
            audit.stale += usize::from(state.latest < state.highest);
            audit.versions += count(newest);
            audit.lost += state.missing.range(..=newest).count();
            audit.lost += count(newest - state.highest);
            audit.phantom += count(state.highest - newest.max(0));
            audit.phantom -= state.missing.range(newest.max(0) + 1..).count();
        }
        for state in self.keys.values() {
            audit.stale += usize::from(state.latest < state.highest);
            audit.phantom += count(state.highest) - state.missing.len();
        }
        self.audit
    }
}

/// Converts a difference; a negative one counts as 0.
fn count(versions: i64) -> usize {
    usize::try_from(versions).unwrap_or(0)
}

impl Audit {
    /// Compares `rows`, pairs of a key and its newest version, with the records of a topic in their order.
    ///
    /// # Panics
    /// If a record has no version.
    pub fn new(rows: &[(String, i64)], records: &[Record]) -> Self {
        let mut auditor = Auditor::default();
        for record in records {
            auditor.add(&record.key, record.version());
        }
        auditor.finish(rows.iter().cloned())
    }

    /// Returns whether there are no differences. Duplicates are not differences.
    pub fn is_clean(&self) -> bool {
        let Self {
            lost,
            phantom,
            inverted,
            stale,
            ..
        } = self;
        [lost, phantom, inverted, stale]
            .iter()
            .all(|count| **count == 0)
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            versions,
            records,
            lost,
            phantom,
            inverted,
            stale,
            repeated,
        } = self;
        write!(
            f,
            "{versions} rows, {records} records: {lost} lost, {phantom} phantom, \
             {inverted} out of order, {stale} stale, {repeated} repeated"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(versions: &[(&str, i64)]) -> Vec<Record> {
        let record = |(key, version): &(&str, i64)| Record {
            partition: 0,
            offset: 0,
            timestamp_ms: None,
            key: (*key).to_owned(),
            payload: None,
            headers: vec![("ce_aggregateversion".to_owned(), version.to_string())],
        };
        versions.iter().map(record).collect()
    }

    fn audit(published: &[(&str, i64)]) -> Audit {
        Audit::new(
            &[("a".to_owned(), 2), ("b".to_owned(), 1)],
            &records(published),
        )
    }

    #[test]
    fn duplicates_are_counted_but_not_a_difference() {
        let audit = audit(&[("a", 1), ("b", 1), ("a", 2), ("a", 1), ("a", 2)]);
        assert!(audit.is_clean());
        assert_eq!((audit.versions, audit.records, audit.repeated), (3, 5, 2));
    }

    #[test]
    fn every_kind_of_difference_is_detected() {
        assert_eq!(audit(&[("a", 1), ("a", 2)]).lost, 1);
        assert_eq!(audit(&[("a", 1), ("a", 2), ("b", 1), ("c", 1)]).phantom, 1);
        assert_eq!(audit(&[("a", 1), ("a", 2), ("b", 1), ("b", 2)]).phantom, 1);
        assert_eq!(audit(&[("a", 2), ("a", 1), ("b", 1)]).inverted, 1);
        assert_eq!(audit(&[("a", 1), ("a", 2), ("a", 1), ("b", 1)]).stale, 1);
    }
}
