use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use crate::records::Record;

/// What of a table and of the topic that tells of it does not agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Versions that the table has reached.
    pub versions: usize,
    /// Records of the topic.
    pub records: usize,
    /// Versions of which no record tells.
    pub lost: usize,
    /// Records of versions that the table never reached.
    pub phantom: usize,
    /// Records that came, for the first time, behind a later version of their key.
    pub inverted: usize,
    /// Keys whose last record is not their newest: compaction would keep the wrong one.
    pub stale: usize,
    /// Records that tell again of what was told: harmless to whoever looks at the version.
    pub repeated: usize,
}

impl Audit {
    /// Compares `rows`, a key and its newest version each, with the records of the topic, in the
    /// order in which they stand there.
    ///
    /// # Panics
    /// If a record has no version.
    pub fn new(rows: &[(String, i64)], records: &[Record]) -> Self {
        let newest: HashMap<&str, i64> = rows.iter().map(|(key, v)| (key.as_str(), *v)).collect();
        let versions = rows
            .iter()
            .map(|(_, version)| usize::try_from(*version).unwrap_or(0))
            .sum();
        let mut audit = Self {
            versions,
            records: records.len(),
            ..Self::default()
        };
        let mut told = HashSet::new();
        let mut last: HashMap<&str, (i64, i64)> = HashMap::new();
        for record in records {
            let key = record.key.as_str();
            let version = record.version();
            let (highest, latest) = last.entry(key).or_default();
            if newest.get(key).is_none_or(|newest| version > *newest) {
                audit.phantom += 1;
            }
            if !told.insert((key, version)) {
                audit.repeated += 1;
            } else if version < *highest {
                audit.inverted += 1;
            }
            *highest = version.max(*highest);
            *latest = version;
        }
        audit.stale = last
            .values()
            .filter(|(highest, latest)| latest < highest)
            .count();
        audit.lost = (rows.iter())
            .flat_map(|(key, newest)| (1..=*newest).map(|version| (key.as_str(), version)))
            .filter(|version| !told.contains(version))
            .count();
        audit
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
