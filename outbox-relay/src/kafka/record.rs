//! What a sink is given: a record of Kafka.

use crate::kafka::varint::{put_bytes, take_bytes};

/// A record, ready to be sent. Everything is borrowed: nothing is copied before the sink does.
#[derive(Debug)]
pub struct Record<'a> {
    /// Where to.
    pub topic: &'a str,
    /// Records of one key go to one partition, in the order in which they are sent.
    pub key: &'a [u8],
    /// The value; none is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// What comes beside it.
    pub headers: &'a Headers,
}

/// The headers of one record, in the form that they have in a record batch: the name and the value of
/// each, with their lengths before them. The next record uses the buffer again.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    encoded: Vec<u8>,
    count: usize,
}

impl Headers {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Name and value of each header, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut rest = &self.encoded[..];
        std::iter::from_fn(move || {
            let name = std::str::from_utf8(take_bytes(&mut rest)?).ok()?;
            Some((name, take_bytes(&mut rest)?))
        })
    }

    pub(crate) fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    pub(crate) fn clear(&mut self) {
        self.encoded.clear();
        self.count = 0;
    }

    pub(crate) fn push(&mut self, name: &str, value: &[u8]) {
        put_bytes(&mut self.encoded, name.as_bytes());
        put_bytes(&mut self.encoded, value);
        self.count += 1;
    }

    pub(crate) fn extend(&mut self, others: &Self) {
        self.encoded.extend_from_slice(&others.encoded);
        self.count += others.count;
    }
}
