//! The topics that records were for, and what each of their partitions gathers.

use std::{collections::HashMap, sync::Arc};

use kafka_protocol::messages::BrokerId;

use super::record_batch::RecordBatch;

/// The sequence of a partition's first batch, by a new name or epoch.
const FIRST_SEQUENCE: i32 = 0;

/// Every topic that a record was for, each with a place in the list.
#[derive(Debug, Default)]
pub(super) struct Topics {
    list: Vec<Topic>,
    places: HashMap<Arc<str>, usize>,
    /// Of the last record: the next is mostly for the same.
    last: usize,
    /// Of all topics.
    partitions: usize,
}

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) max_batch_bytes: usize,
    pub(super) partitions: Vec<Partition>,
}

#[derive(Debug)]
pub(super) struct Partition {
    /// None while the partition has none.
    pub(super) leader: Option<BrokerId>,
    /// Of the next batch's first record, by which the broker notices repetitions and gaps.
    pub(super) next_sequence: i32,
    /// Whether the broker has had a batch of this producer. Until then it takes one of any
    /// sequence: the second, too, when it has rejected the first.
    pub(super) is_known: bool,
    pub(super) batch: RecordBatch,
    pub(super) first: u64,
}

/// A partition: the broker that leads it, and its places in the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) leader: i32,
    pub(super) topic: usize,
    pub(super) partition: usize,
}

impl Topic {
    pub(super) fn new(
        name: &str,
        max_batch_bytes: usize,
        leaders: impl IntoIterator<Item = Option<BrokerId>>,
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
    /// The place of the topic with this name.
    pub(super) fn find(&mut self, name: &str) -> Option<usize> {
        let is_last = self
            .list
            .get(self.last)
            .is_some_and(|topic| &*topic.name == name);
        if !is_last {
            self.last = *self.places.get(name)?;
        }
        Some(self.last)
    }

    /// Adds a topic that is not there; returns its place.
    pub(super) fn add(&mut self, topic: Topic) -> usize {
        self.last = self.list.len();
        self.partitions += topic.partitions.len();
        self.places.insert(Arc::clone(&topic.name), self.last);
        self.list.push(topic);
        self.last
    }

    pub(super) fn get(&self, place: usize) -> &Topic {
        &self.list[place]
    }

    pub(super) fn get_mut(&mut self, place: usize) -> &mut Topic {
        &mut self.list[place]
    }

    pub(super) fn at(&self, place: Place) -> &Partition {
        &self.list[place.topic].partitions[place.partition]
    }

    pub(super) fn at_mut(&mut self, place: Place) -> &mut Partition {
        &mut self.list[place.topic].partitions[place.partition]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Topic> {
        self.list.iter()
    }

    /// How many partitions all topics have together.
    pub(super) fn partitions(&self) -> usize {
        self.partitions
    }

    /// As for a producer of whom the brokers know nothing.
    pub(super) fn restart(&mut self) {
        for topic in &mut self.list {
            for partition in &mut topic.partitions {
                partition.next_sequence = FIRST_SEQUENCE;
                partition.is_known = false;
            }
        }
    }
}
