//! Kafka records, the input of a sink.

use crate::kafka::varint::{put_bytes, take_bytes};

/// A record to publish. All fields are borrowed; the sink makes the only copy.
#[derive(Debug)]
pub struct Record<'a> {
    pub topic: &'a str,
    /// Records with the same key go to the same partition, in send order.
    pub key: &'a [u8],
    /// The value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    pub headers: &'a Headers,
    /// The partition; by default it follows from the key.
    pub partition: Option<i32>,
    /// The timestamp in milliseconds since 1970; by default the time of sending.
    pub timestamp_ms: Option<i64>,
}

/// The headers of one record, already encoded as in a record batch: length-prefixed names and values.
/// The buffer is reused for the next record.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    encoded: Vec<u8>,
    count: usize,
}

impl Headers {
    pub fn count(&self) -> usize {
        self.count
    }

    /// Iterates over names and values, in order.
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
