//! Record batches in Kafka's message format version 2 (KIP-98), which brokers store as they are. See "Record Batch" in
//! <https://kafka.apache.org/documentation/#recordbatch>.

use crate::kafka::{
    record::Record,
    varint::{as_length, bytes_length, put_bytes, put_varint, varint_length},
};

/// The length of the batch header.
const HEADER_BYTES: usize = 61;
// The offsets of the header fields that are known only when the batch is complete.
const LENGTH_AT: usize = 8;
const CRC_AT: usize = 17;
/// The CRC covers everything from here.
const CRC_START: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;
const TIMESTAMPS_AT: usize = 27;
const PRODUCER_AT: usize = 43;
const COUNT_AT: usize = 57;
const MAGIC: u8 = 2;

/// The identity of an idempotent producer (KIP-98). With the sequence it lets the broker reject duplicate, out-of-order
/// and fenced batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Producer {
    pub(super) id: i64,
    pub(super) epoch: i16,
}

/// A batch for one partition. Records are encoded as they are added; the buffer is reused.
#[derive(Debug)]
pub(super) struct RecordBatch {
    buffer: Vec<u8>,
    records: i32,
}

impl RecordBatch {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::new(),
            records: 0,
        }
    }

    pub(super) fn records(&self) -> i32 {
        self.records
    }

    /// The size of the batch, in bytes.
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Returns the size of a batch with this record alone, in bytes.
    pub(super) fn len_of(record: &Record<'_>) -> usize {
        let body = body_length(record, 0);
        HEADER_BYTES + varint_length(as_length(body)) + body
    }

    /// Adds a record.
    pub(super) fn push(&mut self, record: &Record<'_>) {
        if self.buffer.is_empty() {
            self.buffer.resize(HEADER_BYTES, 0);
        }
        let body = body_length(record, self.records);
        self.buffer.reserve(body + 10);
        let out = &mut self.buffer;
        put_varint(out, as_length(body));
        // No attributes; timestamp delta 0.
        out.extend_from_slice(&[0, 0]);
        put_varint(out, i64::from(self.records));
        put_bytes(out, record.key);
        match record.payload {
            Some(payload) => put_bytes(out, payload),
            None => put_varint(out, -1),
        }
        put_varint(out, as_length(record.headers.count()));
        out.extend_from_slice(record.headers.encoded());
        self.records += 1;
    }

    /// Completes the header. `sequence` is that of the first record, `unix_ms` the timestamp of all records.
    pub(super) fn seal(&mut self, producer: Producer, sequence: i32, unix_ms: i64) {
        let length = i32::try_from(self.buffer.len() - LENGTH_AT - 4).unwrap_or(i32::MAX);
        // The attributes stay 0: uncompressed, not transactional, CreateTime. The broker assigns the base offset.
        self.put(LENGTH_AT, &length.to_be_bytes());
        self.put(LENGTH_AT + 4, &(-1_i32).to_be_bytes());
        self.put(CRC_AT - 1, &[MAGIC]);
        self.put(LAST_OFFSET_DELTA_AT, &(self.records - 1).to_be_bytes());
        self.put(TIMESTAMPS_AT, &unix_ms.to_be_bytes());
        self.put(TIMESTAMPS_AT + 8, &unix_ms.to_be_bytes());
        self.put(PRODUCER_AT, &producer.id.to_be_bytes());
        self.put(PRODUCER_AT + 8, &producer.epoch.to_be_bytes());
        self.put(PRODUCER_AT + 10, &sequence.to_be_bytes());
        self.put(COUNT_AT, &self.records.to_be_bytes());
        let crc = crc32c::crc32c(&self.buffer[CRC_START..]);
        self.put(CRC_AT, &crc.to_be_bytes());
    }

    /// Returns the bytes of a completed batch.
    pub(super) fn sealed(&self) -> &[u8] {
        &self.buffer
    }

    /// Clears the batch and keeps at most `max_kept` bytes of its memory.
    pub(super) fn clear(&mut self, max_kept: usize) {
        self.buffer.clear();
        self.buffer.shrink_to(max_kept);
        self.records = 0;
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Returns the length of a record without its length prefix.
fn body_length(record: &Record<'_>, offset_delta: i32) -> usize {
    let count = varint_length(as_length(record.headers.count()));
    let headers = record.headers.encoded().len();
    let payload = record
        .payload
        .map_or(1, |payload| bytes_length(payload.len()));
    let offset = varint_length(i64::from(offset_delta));
    2 + offset + bytes_length(record.key.len()) + payload + count + headers
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kafka_protocol::{protocol::StrBytes, records::RecordBatchDecoder};
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::kafka::record::Headers;

    const PRODUCER: Producer = Producer { id: 7, epoch: 3 };

    #[derive(Clone, Debug)]
    struct Input {
        key: Vec<u8>,
        payload: Option<Vec<u8>>,
        headers: Vec<(String, Vec<u8>)>,
    }

    fn encode(inputs: &[Input], sequence: i32) -> Vec<u8> {
        let mut batch = RecordBatch::new();
        let mut headers = Headers::default();
        for input in inputs {
            headers.clear();
            for (name, value) in &input.headers {
                headers.push(name, value);
            }
            let record = Record {
                topic: "t",
                key: &input.key,
                payload: input.payload.as_deref(),
                headers: &headers,
            };
            let (before, alone) = (batch.len(), RecordBatch::len_of(&record));
            batch.push(&record);
            // The offset delta is part of the record and takes more bytes from 64 on.
            assert!(batch.len() - before.max(HEADER_BYTES) >= alone - HEADER_BYTES);
            assert!(batch.len() - before.max(HEADER_BYTES) <= alone - HEADER_BYTES + 4);
        }
        batch.seal(PRODUCER, sequence, 1_700_000_000_123);
        batch.sealed().to_vec()
    }

    fn input() -> impl Strategy<Value = Input> {
        // The decoder returns a map, so names must be unique.
        let headers =
            proptest::collection::btree_map("[a-z_]{1,12}", vec(any::<u8>(), 0..80), 0..9);
        let payload =
            option::of(prop_oneof![9 => vec(any::<u8>(), 0..100), 1 => vec(any::<u8>(), 0..9_000)]);
        (vec(any::<u8>(), 0..70), payload, headers).prop_map(|(key, payload, headers)| Input {
            key,
            payload,
            headers: headers.into_iter().collect(),
        })
    }

    proptest! {
        /// Decoded by kafka-protocol, which also checks the CRC.
        #[test]
        fn encoded_records_are_decoded_unchanged(records in vec(input(), 1..70), sequence in 0..i32::MAX) {
            let mut bytes = Bytes::from(encode(&records, sequence));
            let decoded = RecordBatchDecoder::decode(&mut bytes).unwrap().records;
            prop_assert_eq!(bytes.len(), 0);
            prop_assert_eq!(decoded.len(), records.len());
            for (index, (input, found)) in records.iter().zip(decoded).enumerate() {
                prop_assert_eq!(found.key.as_deref(), Some(&input.key[..]));
                prop_assert_eq!(found.value.as_deref(), input.payload.as_deref());
                prop_assert_eq!(found.headers.len(), input.headers.len());
                for (name, value) in &input.headers {
                    let header = found.headers.get(&StrBytes::from_string(name.clone()));
                    prop_assert_eq!(header.unwrap().as_deref(), Some(&value[..]));
                }
                prop_assert_eq!(found.offset, index as i64);
                prop_assert_eq!((found.producer_id, found.producer_epoch), (7, 3));
                prop_assert_eq!(found.sequence, sequence.wrapping_add(index as i32));
                prop_assert_eq!(found.timestamp, 1_700_000_000_123);
                prop_assert!(!found.transactional && !found.control);
            }
        }
    }

    /// Compares with the bytes of Kafka's Java producer.
    #[test]
    fn a_batch_has_the_bytes_of_the_documented_format() {
        let input = Input {
            key: b"k".to_vec(),
            payload: Some(b"v".to_vec()),
            headers: vec![("h".into(), b"x".to_vec())],
        };
        let bytes = encode(&[input], 5);
        let (head, body) = bytes.split_at(HEADER_BYTES);
        assert_eq!(&head[..8], [0; 8], "base offset");
        assert_eq!(&head[8..12], 62_u32.to_be_bytes(), "length of the rest");
        assert_eq!(
            &head[12..17],
            [255, 255, 255, 255, 2],
            "leader epoch, magic"
        );
        assert_eq!(&head[21..27], [0; 6], "attributes, last offset delta");
        assert_eq!(&head[43..57], [0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 0, 0, 0, 5]);
        assert_eq!(&head[57..61], 1_u32.to_be_bytes());
        // 12 bytes: attributes, timestamp delta, offset delta, key, value, one header.
        assert_eq!(body, [24, 0, 0, 0, 2, b'k', 2, b'v', 2, 2, b'h', 2, b'x']);
    }

    #[test]
    fn a_cleared_batch_encodes_like_a_new_one() {
        let record = Input {
            key: b"k".to_vec(),
            payload: None,
            headers: Vec::new(),
        };
        let fresh = encode(std::slice::from_ref(&record), 9);
        let headers = Headers::default();
        let mut batch = RecordBatch::new();
        for _ in 0..2 {
            batch.push(&Record {
                topic: "t",
                key: b"k",
                payload: None,
                headers: &headers,
            });
            batch.seal(PRODUCER, 9, 1_700_000_000_123);
            assert_eq!(batch.sealed(), fresh);
            batch.clear(1024);
        }
        assert_eq!((batch.len(), batch.records()), (0, 0));
    }
}
