//! What the records of a batch come to, before the database is asked.

use std::collections::BTreeMap;

use rdkafka::{Message as _, message::BorrowedMessage};

use crate::{Projection, offsets::Counts, poison::Poison, record::Record};

/// What a projection makes of messages.
pub(crate) struct Decoded<C> {
    pub(crate) changes: Vec<C>,
    /// The messages that can't be applied, by their places in the batch.
    pub(crate) dead_letters: Vec<(usize, Poison)>,
    pub(crate) counts: BTreeMap<i32, Counts>,
}

impl<C> Default for Decoded<C> {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            dead_letters: Vec::new(),
            counts: BTreeMap::new(),
        }
    }
}

impl<C> Decoded<C> {
    pub(crate) fn of<P>(projection: &P, messages: &[BorrowedMessage<'_>]) -> Self
    where
        P: Projection<Change = C>,
    {
        let mut decoded = Self::default();
        for (index, message) in messages.iter().enumerate() {
            decoded.push(projection, index, message);
        }
        decoded
    }

    /// A message that the database has rejected.
    pub(crate) fn rejected(message: &BorrowedMessage<'_>, poison: Poison) -> Self {
        let mut decoded = Self::default();
        decoded.count(message).dead_lettered += 1;
        decoded.dead_letters.push((0, poison));
        decoded
    }

    /// Decodes the message that is the batch's next.
    pub(crate) fn push<P>(&mut self, projection: &P, index: usize, message: &BorrowedMessage<'_>)
    where
        P: Projection<Change = C>,
    {
        let record = Record::of(message);
        let decoded = record.check().and_then(|()| projection.decode(&record));
        match decoded {
            Ok(Some(change)) => {
                self.changes.push(change);
                self.count(message).applied += 1;
            }
            Ok(None) => self.count(message).skipped += 1,
            Err(poison) => {
                self.dead_letters.push((index, poison));
                self.count(message).dead_lettered += 1;
            }
        }
    }

    fn count(&mut self, message: &BorrowedMessage<'_>) -> &mut Counts {
        self.counts.entry(message.partition()).or_default()
    }
}
