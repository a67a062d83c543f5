//! Decodes the records of a batch, before the database is involved.

use std::collections::BTreeMap;

use rdkafka::{Message as _, message::BorrowedMessage};

use crate::{Projection, offsets::Counts, poison::Poison, record::Record};

/// Decodes a record. Returns `None` if the projection skips it.
///
/// This is the only place that tells tombstones from events. It comes before the headers, because a tombstone
/// may have none.
///
/// # Errors
/// [`Poison`] if a record with a payload cannot be decoded.
pub(crate) fn decode_record<P: Projection>(
    projection: &P,
    record: &Record<'_>,
) -> Result<Option<P::Change>, Poison> {
    if record.payload().is_none() {
        return Ok(projection.decode_tombstone(record));
    }
    record.validate_headers()?;
    projection.decode(record)
}

/// The decoded messages of a batch.
pub(crate) struct DecodedBatch<C> {
    pub(crate) changes: Vec<C>,
    /// The poison records, which become dead letters, by index in the batch.
    pub(crate) dead_letters: Vec<(usize, Poison)>,
    pub(crate) counts: BTreeMap<i32, Counts>,
}

impl<C> Default for DecodedBatch<C> {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            dead_letters: Vec::new(),
            counts: BTreeMap::new(),
        }
    }
}

impl<C> DecodedBatch<C> {
    pub(crate) fn decode<P>(projection: &P, messages: &[BorrowedMessage<'_>]) -> Self
    where
        P: Projection<Change = C>,
    {
        let mut decoded = Self::default();
        for (index, message) in messages.iter().enumerate() {
            decoded.push(projection, index, message);
        }
        decoded
    }

    /// Returns the batch of one poison record that only the database could detect.
    pub(crate) fn from_poison(message: &BorrowedMessage<'_>, poison: Poison) -> Self {
        let mut decoded = Self::default();
        decoded.count(message).dead_lettered += 1;
        decoded.dead_letters.push((0, poison));
        decoded
    }

    /// Decodes the batch's next message.
    pub(crate) fn push<P>(&mut self, projection: &P, index: usize, message: &BorrowedMessage<'_>)
    where
        P: Projection<Change = C>,
    {
        let record = Record::from_message(message);
        match decode_record(projection, &record) {
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
