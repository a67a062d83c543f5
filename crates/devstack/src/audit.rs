use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use serde::Serialize;

use crate::records::Record;

/// What of a table and of the topic that tells of it does not agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Versions that the table has reached.
    pub versions: usize,
    /// Records of the topic.
    pub records: usize,
    /// Versions of which no record tells.
    pub lost: usize,
    /// Versions that were told and that the table never reached.
    pub phantom: usize,
    /// Records that came, for the first time, behind a later version of their key.
    pub inverted: usize,
    /// Keys whose last record is not their newest: compaction would keep the wrong one.
    pub stale: usize,
    /// Records that tell again of what was told: harmless to whoever looks at the version.
    pub repeated: usize,
}

/// Reads a topic record by record, and remembers no more than it has to: of each key how far it was
/// told, and what is still missing.
#[derive(Debug, Default)]
pub struct Auditor {
    keys: HashMap<String, Told>,
    audit: Audit,
}

/// What was told of a key.
#[derive(Debug, Default)]
struct Told {
    highest: i64,
    latest: i64,
    /// Versions below the highest that were not told yet.
    missing: BTreeSet<i64>,
}

impl Auditor {
    /// The next record: a version of a key.
    pub fn see(&mut self, key: &str, version: i64) {
        self.audit.records += 1;
        if !self.keys.contains_key(key) {
            self.keys.insert(key.to_owned(), Told::default());
        }
        let Some(told) = self.keys.get_mut(key) else {
            return;
        };
        if version > told.highest {
            told.missing.extend(told.highest + 1..version);
            told.highest = version;
        } else if told.missing.remove(&version) {
            self.audit.inverted += 1;
        } else {
            self.audit.repeated += 1;
        }
        told.latest = version;
    }

    /// How many versions were told so far, whatever was repeated.
    pub fn told(&self) -> usize {
        self.audit.records - self.audit.repeated
    }

    /// Compares what was told with the rows, a key and its newest version each.
    pub fn finish(mut self, rows: impl IntoIterator<Item = (String, i64)>) -> Audit {
        let audit = &mut self.audit;
        for (key, newest) in rows {
            let told = self.keys.remove(&key).unwrap_or_default();
            audit.stale += usize::from(told.latest < told.highest);
            audit.versions += count(newest);
            audit.lost += told.missing.range(..=newest).count();
            audit.lost += count(newest - told.highest);
            audit.phantom += count(told.highest - newest.max(0));
            audit.phantom -= told.missing.range(newest.max(0) + 1..).count();
        }
        for told in self.keys.values() {
            audit.stale += usize::from(told.latest < told.highest);
            audit.phantom += count(told.highest) - told.missing.len();
        }
        self.audit
    }
}

/// So many, or none.
fn count(versions: i64) -> usize {
    usize::try_from(versions).unwrap_or(0)
}

impl Audit {
    /// Compares `rows`, a key and its newest version each, with the records of the topic, in the
    /// order in which they stand there.
    ///
    /// # Panics
    /// If a record has no version.
    pub fn new(rows: &[(String, i64)], records: &[Record]) -> Self {
        let mut auditor = Auditor::default();
        for record in records {
            auditor.see(&record.key, record.version());
        }
        auditor.finish(rows.iter().cloned())
    }

    /// Whether nothing is wrong; what was repeated is not.
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

    fn audit(told: &[(&str, i64)]) -> Audit {
        Audit::new(&[("a".to_owned(), 2), ("b".to_owned(), 1)], &records(told))
    }

    #[test]
    fn repeats_are_counted_and_forgiven() {
        let audit = audit(&[("a", 1), ("b", 1), ("a", 2), ("a", 1), ("a", 2)]);
        assert!(audit.is_clean());
        assert_eq!((audit.versions, audit.records, audit.repeated), (3, 5, 2));
    }

    #[test]
    fn every_kind_of_fault_is_found() {
        assert_eq!(audit(&[("a", 1), ("a", 2)]).lost, 1);
        assert_eq!(audit(&[("a", 1), ("a", 2), ("b", 1), ("c", 1)]).phantom, 1);
        assert_eq!(audit(&[("a", 1), ("a", 2), ("b", 1), ("b", 2)]).phantom, 1);
        assert_eq!(audit(&[("a", 2), ("a", 1), ("b", 1)]).inverted, 1);
        assert_eq!(audit(&[("a", 1), ("a", 2), ("a", 1), ("b", 1)]).stale, 1);
    }
}
