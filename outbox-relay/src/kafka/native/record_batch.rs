//! Record batches in Kafka's message format version 2 (KIP-98), which brokers store as they are. See "Record Batch" in
//! <https://kafka.apache.org/documentation/#recordbatch>.

use super::compression::Compressor;
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
/// The second byte of the attributes has the codec.
const CODEC_AT: usize = 22;
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
    /// The timestamp of records without one of their own, in milliseconds since 1970.
    base_ms: i64,
    max_ms: i64,
    /// The completed batch, if it is compressed.
    compressed: Vec<u8>,
}

impl RecordBatch {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::new(),
            records: 0,
            base_ms: 0,
            max_ms: 0,
            compressed: Vec::new(),
        }
    }

    pub(super) fn records(&self) -> i32 {
        self.records
    }

    /// The uncompressed size of the batch, in bytes.
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Returns the size of a batch with this record alone, in bytes.
    pub(super) fn len_of(record: &Record<'_>) -> usize {
        let body = body_length(record, 0, 0);
        HEADER_BYTES + varint_length(as_length(body)) + body
    }

    /// Begins a batch. `unix_ms` is the timestamp of records without one of their own.
    pub(super) fn begin(&mut self, unix_ms: i64) {
        self.buffer.resize(HEADER_BYTES, 0);
        (self.base_ms, self.max_ms) = (unix_ms, i64::MIN);
    }

    /// Adds a record. The batch must have begun.
    pub(super) fn push(&mut self, record: &Record<'_>) {
        let timestamp_ms = record.timestamp_ms.unwrap_or(self.base_ms);
        let timestamp_delta = timestamp_ms.saturating_sub(self.base_ms);
        self.max_ms = self.max_ms.max(timestamp_ms);
        let body = body_length(record, self.records, timestamp_delta);
        self.buffer.reserve(body + 10);
        let out = &mut self.buffer;
        put_varint(out, as_length(body));
        // No attributes.
        out.push(0);
        put_varint(out, timestamp_delta);
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

    /// Compresses the records and completes the header. `sequence` is that of the first record.
    pub(super) fn seal(&mut self, producer: Producer, sequence: i32, compressor: &mut Compressor) {
        let codec = self.compress(compressor);
        let (records, base_ms, max_ms) = (self.records, self.base_ms, self.max_ms);
        let batch = match codec {
            Some(_) => &mut self.compressed,
            None => &mut self.buffer,
        };
        let mut put = |at: usize, bytes: &[u8]| batch[at..at + bytes.len()].copy_from_slice(bytes);
        // The other attributes stay 0: not transactional, CreateTime. The broker assigns the base offset.
        put(CODEC_AT, &[codec.unwrap_or(0)]);
        put(LENGTH_AT + 4, &(-1_i32).to_be_bytes());
        put(CRC_AT - 1, &[MAGIC]);
        put(LAST_OFFSET_DELTA_AT, &(records - 1).to_be_bytes());
        put(TIMESTAMPS_AT, &base_ms.to_be_bytes());
        put(TIMESTAMPS_AT + 8, &max_ms.to_be_bytes());
        put(PRODUCER_AT, &producer.id.to_be_bytes());
        put(PRODUCER_AT + 8, &producer.epoch.to_be_bytes());
        put(PRODUCER_AT + 10, &sequence.to_be_bytes());
        put(COUNT_AT, &records.to_be_bytes());
        let length = i32::try_from(batch.len() - LENGTH_AT - 4).unwrap_or(i32::MAX);
        batch[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&batch[CRC_START..]);
        batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    }

    /// Compresses the records, if that makes them smaller. Returns the number of the codec.
    fn compress(&mut self, compressor: &mut Compressor) -> Option<u8> {
        self.compressed.clear();
        if !compressor.is_enabled() {
            return None;
        }
        self.compressed.resize(HEADER_BYTES, 0);
        let codec = compressor.compress(&self.buffer[HEADER_BYTES..], &mut self.compressed);
        let codec = codec.filter(|_| self.compressed.len() < self.buffer.len());
        if codec.is_none() {
            self.compressed.clear();
        }
        codec
    }

    /// Returns the bytes of a completed batch.
    pub(super) fn sealed(&self) -> &[u8] {
        match self.compressed.is_empty() {
            true => &self.buffer,
            false => &self.compressed,
        }
    }

    /// Clears the batch and keeps at most `max_kept` bytes of its memory.
    pub(super) fn clear(&mut self, max_kept: usize) {
        self.buffer.clear();
        self.buffer.shrink_to(max_kept);
        self.compressed.clear();
        self.compressed.shrink_to(max_kept);
        self.records = 0;
    }
}

/// Returns the length of a record without its length prefix.
fn body_length(record: &Record<'_>, offset_delta: i32, timestamp_delta: i64) -> usize {
    let count = varint_length(as_length(record.headers.count()));
    let headers = record.headers.encoded().len();
    let payload = record
        .payload
        .map_or(1, |payload| bytes_length(payload.len()));
    let offset = varint_length(i64::from(offset_delta));
    1 + varint_length(timestamp_delta)
        + offset
        + bytes_length(record.key.len())
        + payload
        + count
        + headers
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use bytes::Bytes;
    use kafka_protocol::{protocol::StrBytes, records::RecordBatchDecoder};
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::{config::Compression, kafka::record::Headers};

    const PRODUCER: Producer = Producer { id: 7, epoch: 3 };
    const BASE_MS: i64 = 1_700_000_000_123;

    #[derive(Clone, Debug)]
    struct Input {
        key: Vec<u8>,
        payload: Option<Vec<u8>>,
        headers: Vec<(String, Vec<u8>)>,
        timestamp_ms: Option<i64>,
    }

    fn encode(inputs: &[Input], sequence: i32, codec: Compression) -> Vec<u8> {
        let mut batch = RecordBatch::new();
        batch.begin(BASE_MS);
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
                partition: None,
                timestamp_ms: input.timestamp_ms,
            };
            let (before, alone) = (batch.len(), RecordBatch::len_of(&record));
            batch.push(&record);
            // The deltas of offset and timestamp are part of the record and take more bytes from 64 on. The brokers' limit holds
            // nevertheless, because the size of a record alone includes the header of a batch.
            assert!(batch.len() - before.max(HEADER_BYTES) >= alone - HEADER_BYTES);
            assert!(batch.len() - before.max(HEADER_BYTES) <= alone - HEADER_BYTES + 13);
        }
        let mut compressor = Compressor::new(codec);
        batch.seal(PRODUCER, sequence, &mut compressor);
        batch.sealed().to_vec()
    }

    /// Kafka's own decoders read the batches of the tests of sinks.
    fn decompress(
        compressed: &mut Bytes,
        codec: kafka_protocol::records::Compression,
    ) -> anyhow::Result<Bytes> {
        use kafka_protocol::records::Compression as Codec;
        let mut records = Vec::new();
        let compressed = &compressed[..];
        match codec {
            Codec::None => return Ok(Bytes::copy_from_slice(compressed)),
            Codec::Gzip => flate2::read::GzDecoder::new(compressed).read_to_end(&mut records)?,
            Codec::Lz4 => {
                lz4_flex::frame::FrameDecoder::new(compressed).read_to_end(&mut records)?
            }
            Codec::Zstd => zstd::Decoder::new(compressed)?.read_to_end(&mut records)?,
            Codec::Snappy => anyhow::bail!("no such codec is configured"),
        };
        Ok(records.into())
    }

    fn input() -> impl Strategy<Value = Input> {
        // The decoder returns a map, so names must be unique.
        let headers =
            proptest::collection::btree_map("[a-z_]{1,12}", vec(any::<u8>(), 0..80), 0..9);
        let payload =
            option::of(prop_oneof![9 => vec(any::<u8>(), 0..100), 1 => vec(any::<u8>(), 0..9_000)]);
        let timestamp_ms = option::of(0..4_000_000_000_000_i64);
        let input = (vec(any::<u8>(), 0..70), payload, headers, timestamp_ms);
        input.prop_map(|(key, payload, headers, timestamp_ms)| Input {
            key,
            payload,
            headers: headers.into_iter().collect(),
            timestamp_ms,
        })
    }

    proptest! {
        /// Decoded by kafka-protocol, which also checks the CRC.
        #[test]
        fn encoded_records_are_decoded_unchanged(
            records in vec(input(), 1..70),
            sequence in 0..i32::MAX,
            codec in prop_oneof![Just(Compression::None), Just(Compression::Gzip), Just(Compression::Lz4), Just(Compression::Zstd)],
        ) {
            let mut bytes = Bytes::from(encode(&records, sequence, codec));
            let decoded = RecordBatchDecoder::decode_with_custom_compression(&mut bytes, Some(decompress));
            let decoded = decoded.unwrap().records;
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
                prop_assert_eq!(found.timestamp, input.timestamp_ms.unwrap_or(BASE_MS));
                prop_assert!(!found.transactional && !found.control);
            }
        }
    }

    #[test]
    fn a_codec_is_used_if_it_makes_the_batch_smaller() {
        let input = |payload: &[u8]| Input {
            key: b"k".to_vec(),
            payload: Some(payload.to_vec()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        let uncompressed =
            |input: &Input| encode(std::slice::from_ref(input), 1, Compression::None);
        let (repeated, short) = (input(&[b'x'; 1_000]), input(b"x"));
        for (codec, number) in [
            (Compression::Gzip, 1),
            (Compression::Lz4, 3),
            (Compression::Zstd, 4),
        ] {
            let compressed = encode(std::slice::from_ref(&repeated), 1, codec);
            assert_eq!(compressed[21..23], [0, number], "{codec:?}");
            assert!(
                compressed.len() < uncompressed(&repeated).len() / 4,
                "{codec:?}"
            );
            let kept = encode(std::slice::from_ref(&short), 1, codec);
            assert_eq!(kept, uncompressed(&short), "{codec:?}");
        }
    }

    /// Compares with the bytes of Kafka's Java producer.
    #[test]
    fn a_batch_has_the_bytes_of_the_documented_format() {
        let input = Input {
            key: b"k".to_vec(),
            payload: Some(b"v".to_vec()),
            headers: vec![("h".into(), b"x".to_vec())],
            timestamp_ms: None,
        };
        let bytes = encode(&[input], 5, Compression::None);
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
            timestamp_ms: None,
        };
        let fresh = encode(std::slice::from_ref(&record), 9, Compression::None);
        let mut compressor = Compressor::new(Compression::None);
        let headers = Headers::default();
        let mut batch = RecordBatch::new();
        for _ in 0..2 {
            batch.begin(BASE_MS);
            batch.push(&Record {
                topic: "t",
                key: b"k",
                payload: None,
                headers: &headers,
                partition: None,
                timestamp_ms: None,
            });
            batch.seal(PRODUCER, 9, &mut compressor);
            assert_eq!(batch.sealed(), fresh);
            batch.clear(1024);
        }
        assert_eq!((batch.len(), batch.records()), (0, 0));
    }
}
