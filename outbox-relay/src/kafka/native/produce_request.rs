//! Encodes Produce requests (version 9) around existing record batches.

use std::{io::IoSlice, sync::Arc};

use bytes::BufMut as _;
use kafka_protocol::{messages::ProduceRequest, protocol::Request as _};

use super::client::{CLIENT_ID, PRODUCE_VERSION};
use crate::kafka::varint::put_unsigned_varint;

const ACKS_ALL: i16 = -1;

/// A record batch for one partition.
pub(super) struct PartitionBatch<'a> {
    pub(super) topic: &'a Arc<str>,
    pub(super) partition: i32,
    /// The encoded record batch.
    pub(super) bytes: &'a [u8],
    /// The number of its first record; identifies the batch in [`Acknowledgements`](crate::kafka::Acknowledgements).
    pub(super) first: u64,
}

/// All bytes of a request except its batches. Encoded by hand because a message encoder would copy the batches; a test
/// compares the result with one.
pub(super) struct ProduceRequestFrame {
    bytes: Vec<u8>,
    /// The offset in `bytes` at which each batch is inserted.
    batch_offsets: Vec<usize>,
}

impl ProduceRequestFrame {
    /// Encodes a request. `batches` must be grouped by topic.
    pub(super) fn new(
        batches: &[PartitionBatch<'_>],
        correlation_id: i32,
        timeout_ms: i32,
    ) -> Self {
        let mut bytes = Vec::with_capacity(64 + batches.len() * 32);
        let mut batch_offsets = Vec::with_capacity(batches.len());
        let out = &mut bytes;
        out.put_i32(0);
        // Request header version 2. Its client id is not a compact string (KIP-482).
        out.put_i16(ProduceRequest::KEY);
        out.put_i16(PRODUCE_VERSION);
        out.put_i32(correlation_id);
        out.put_i16(i16::try_from(CLIENT_ID.len()).unwrap_or_default());
        out.put_slice(CLIENT_ID.as_bytes());
        put_no_tags(out);
        // No transactional id: the batches are not part of a transaction.
        put_compact_length(out, None);
        out.put_i16(ACKS_ALL);
        out.put_i32(timeout_ms);
        let topics = || batches.chunk_by(|a, b| a.topic == b.topic);
        put_compact_length(out, Some(topics().count()));
        for batches in topics() {
            put_compact_length(out, Some(batches[0].topic.len()));
            out.put_slice(batches[0].topic.as_bytes());
            put_compact_length(out, Some(batches.len()));
            for batch in batches {
                out.put_i32(batch.partition);
                put_compact_length(out, Some(batch.bytes.len()));
                batch_offsets.push(out.len());
                put_no_tags(out);
            }
            put_no_tags(out);
        }
        put_no_tags(out);
        let batch_bytes: usize = batches.iter().map(|batch| batch.bytes.len()).sum();
        let length = i32::try_from(bytes.len() + batch_bytes - 4).unwrap_or(i32::MAX);
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        Self {
            bytes,
            batch_offsets,
        }
    }

    /// Returns the whole request as slices for a vectored write.
    pub(super) fn slices<'a>(&'a self, batches: &[PartitionBatch<'a>]) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(2 * batches.len() + 1);
        let mut written = 0;
        for (batch, &offset) in batches.iter().zip(&self.batch_offsets) {
            slices.push(IoSlice::new(&self.bytes[written..offset]));
            slices.push(IoSlice::new(batch.bytes));
            written = offset;
        }
        slices.push(IoSlice::new(&self.bytes[written..]));
        slices
    }
}

/// Appends a compact length (KIP-482): a varint of the length plus one; 0 is null.
fn put_compact_length(out: &mut Vec<u8>, length: Option<usize>) {
    put_unsigned_varint(out, length.map_or(0, |length| length as u64 + 1));
}

fn put_no_tags(out: &mut Vec<u8>) {
    out.push(0);
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::{
        messages::{
            RequestHeader, TopicName,
            produce_request::{PartitionProduceData, TopicProduceData},
        },
        protocol::{Encodable as _, HeaderVersion as _, StrBytes},
    };

    use super::*;

    /// Encodes the same request with kafka-protocol.
    fn reference(batches: &[PartitionBatch<'_>]) -> BytesMut {
        let topics = batches.chunk_by(|a, b| a.topic == b.topic).map(|batches| {
            let partition = |batch: &PartitionBatch<'_>| {
                PartitionProduceData::default()
                    .with_index(batch.partition)
                    .with_records(Some(Bytes::copy_from_slice(batch.bytes)))
            };
            TopicProduceData::default()
                .with_name(TopicName(StrBytes::from_string(
                    batches[0].topic.to_string(),
                )))
                .with_partition_data(batches.iter().map(partition).collect())
        });
        let mut frame = BytesMut::new();
        frame.put_i32(0);
        RequestHeader::default()
            .with_request_api_key(ProduceRequest::KEY)
            .with_request_api_version(PRODUCE_VERSION)
            .with_correlation_id(77)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)))
            .encode(&mut frame, ProduceRequest::header_version(PRODUCE_VERSION))
            .unwrap();
        ProduceRequest::default()
            .with_acks(ACKS_ALL)
            .with_timeout_ms(2_000)
            .with_topic_data(topics.collect())
            .encode(&mut frame, PRODUCE_VERSION)
            .unwrap();
        let length = u32::try_from(frame.len() - 4).unwrap();
        frame[..4].copy_from_slice(&length.to_be_bytes());
        frame
    }

    #[test]
    fn a_request_equals_that_of_kafka_protocol() {
        let (small, large) = (vec![1; 100], vec![2; 70_000]);
        let [orders, a, long_name] = ["orders.v1", "a", &"t".repeat(200)].map(Arc::<str>::from);
        let batch = |topic, partition, bytes| PartitionBatch {
            topic,
            partition,
            bytes,
            first: 0,
        };
        for batches in [
            vec![batch(&orders, 3, &small)],
            vec![
                batch(&a, 0, &small),
                batch(&a, 1, &large),
                batch(&long_name, 200, &small),
            ],
        ] {
            let frame = ProduceRequestFrame::new(&batches, 77, 2_000);
            let pieces = frame.slices(&batches);
            let whole: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| piece.iter().copied())
                .collect();
            assert_eq!(whole, reference(&batches));
        }
    }
}
