//! The known topics, with the open batch and the sequence of each partition.

use std::{collections::HashMap, sync::Arc};

use super::record_batch::RecordBatch;

/// The first sequence in a partition after a new producer id or epoch.
const FIRST_SEQUENCE: i32 = 0;

/// The topics that records were sent to, addressed by index.
#[derive(Debug, Default)]
pub(super) struct Topics {
    list: Vec<Topic>,
    indexes: HashMap<Arc<str>, usize>,
    /// The index of the last record's topic; the next record usually has the same.
    last: usize,
    /// Of all topics.
    partition_count: usize,
}

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) max_batch_bytes: usize,
    pub(super) partitions: Vec<Partition>,
}

#[derive(Debug)]
pub(super) struct Partition {
    /// `None` during a leader election.
    pub(super) leader: Option<i32>,
    /// The sequence of the next record, by which the broker detects duplicates and gaps (KIP-98).
    pub(super) next_sequence: i32,
    /// Set once a batch was sent to this partition. A broker accepts any sequence as a producer's first: also the second
    /// batch after it rejected the first.
    pub(super) is_known: bool,
    pub(super) batch: RecordBatch,
    /// The number of the batch's first record.
    pub(super) first: u64,
}

/// A partition's leader and indexes, ordered by leader and topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartitionIndex {
    pub(super) leader: i32,
    pub(super) topic: usize,
    pub(super) partition: usize,
}

impl Topic {
    pub(super) fn new(
        name: &str,
        max_batch_bytes: usize,
        leaders: impl IntoIterator<Item = Option<i32>>,
    ) -> Self {
        let partition = |leader| Partition {
            leader,
            next_sequence: FIRST_SEQUENCE,
            is_known: false,
            batch: RecordBatch::new(),
            first: 0,
        };
        Self {
            name: name.into(),
            max_batch_bytes,
            partitions: leaders.into_iter().map(partition).collect(),
        }
    }
}

impl Topics {
    /// Returns the index of the topic with this name.
    pub(super) fn find(&mut self, name: &str) -> Option<usize> {
        let is_last = self
            .list
            .get(self.last)
            .is_some_and(|topic| &*topic.name == name);
        if !is_last {
            self.last = *self.indexes.get(name)?;
        }
        Some(self.last)
    }

    /// Adds a new topic and returns its index.
    pub(super) fn add(&mut self, topic: Topic) -> usize {
        self.last = self.list.len();
        self.partition_count += topic.partitions.len();
        self.indexes.insert(Arc::clone(&topic.name), self.last);
        self.list.push(topic);
        self.last
    }

    pub(super) fn get(&self, index: usize) -> &Topic {
        &self.list[index]
    }

    pub(super) fn get_mut(&mut self, index: usize) -> &mut Topic {
        &mut self.list[index]
    }

    pub(super) fn partition(&self, index: PartitionIndex) -> &Partition {
        &self.list[index.topic].partitions[index.partition]
    }

    pub(super) fn partition_mut(&mut self, index: PartitionIndex) -> &mut Partition {
        &mut self.list[index.topic].partitions[index.partition]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Topic> {
        self.list.iter()
    }

    /// The number of partitions of all topics.
    pub(super) fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// Resets all sequences, for a new producer epoch.
    pub(super) fn reset_sequences(&mut self) {
        for topic in &mut self.list {
            for partition in &mut topic.partitions {
                partition.next_sequence = FIRST_SEQUENCE;
                partition.is_known = false;
            }
        }
    }
}
