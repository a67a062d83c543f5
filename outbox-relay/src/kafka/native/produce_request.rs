//! The bytes of a Produce request around its record batches.

use std::{io::IoSlice, sync::Arc};

use bytes::BufMut as _;
use kafka_protocol::{messages::ProduceRequest, protocol::Request as _};

use super::{cluster::PRODUCE_VERSION, connection::CLIENT_ID};
use crate::kafka::varint::put_unsigned_varint;

const ACKS_ALL: i16 = -1;

/// One partition's part of a request.
pub(super) struct Part<'a> {
    pub(super) topic: &'a Arc<str>,
    pub(super) partition: i32,
    /// A record batch.
    pub(super) batch: &'a [u8],
    /// The number of its first record, by which its acknowledgement is counted.
    pub(super) first: u64,
}

/// What stands between the batches of a request. Encoded by hand, because an encoder of whole
/// messages would copy the batches into it; a test compares it with such a one.
pub(super) struct ProduceRequestFrame {
    bytes: Vec<u8>,
    /// Where in `bytes` each batch belongs.
    batches_at: Vec<usize>,
}

impl ProduceRequestFrame {
    /// `parts` have to be in the order of their topics.
    pub(super) fn new(parts: &[Part<'_>], correlation_id: i32, timeout_ms: i32) -> Self {
        let mut bytes = Vec::with_capacity(64 + parts.len() * 32);
        let mut batches_at = Vec::with_capacity(parts.len());
        let out = &mut bytes;
        out.put_i32(0);
        // The header, version 2; its client id is of the old, fixed form.
        out.put_i16(ProduceRequest::KEY);
        out.put_i16(PRODUCE_VERSION);
        out.put_i32(correlation_id);
        out.put_i16(i16::try_from(CLIENT_ID.len()).unwrap_or_default());
        out.put_slice(CLIENT_ID.as_bytes());
        put_no_tags(out);
        // No transactional id: none of this is a transaction.
        put_compact_length(out, None);
        out.put_i16(ACKS_ALL);
        out.put_i32(timeout_ms);
        let topics = || parts.chunk_by(|a, b| a.topic == b.topic);
        put_compact_length(out, Some(topics().count()));
        for parts in topics() {
            put_compact_length(out, Some(parts[0].topic.len()));
            out.put_slice(parts[0].topic.as_bytes());
            put_compact_length(out, Some(parts.len()));
            for part in parts {
                out.put_i32(part.partition);
                put_compact_length(out, Some(part.batch.len()));
                batches_at.push(out.len());
                put_no_tags(out);
            }
            put_no_tags(out);
        }
        put_no_tags(out);
        let batches: usize = parts.iter().map(|part| part.batch.len()).sum();
        let length = i32::try_from(bytes.len() + batches - 4).unwrap_or(i32::MAX);
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        Self { bytes, batches_at }
    }

    /// The whole request, in pieces.
    pub(super) fn slices<'a>(&'a self, parts: &[Part<'a>]) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(2 * parts.len() + 1);
        let mut written = 0;
        for (part, &at) in parts.iter().zip(&self.batches_at) {
            slices.push(IoSlice::new(&self.bytes[written..at]));
            slices.push(IoSlice::new(part.batch));
            written = at;
        }
        slices.push(IoSlice::new(&self.bytes[written..]));
        slices
    }
}

/// Lengths in the newer messages are one more than they are, as base-128 numbers; 0 is null.
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

    /// The same request, by the encoder of a crate that others wrote.
    fn reference(parts: &[Part<'_>]) -> BytesMut {
        let topics = parts.chunk_by(|a, b| a.topic == b.topic).map(|parts| {
            let partition = |part: &Part<'_>| {
                PartitionProduceData::default()
                    .with_index(part.partition)
                    .with_records(Some(Bytes::copy_from_slice(part.batch)))
            };
            TopicProduceData::default()
                .with_name(TopicName(StrBytes::from_string(parts[0].topic.to_string())))
                .with_partition_data(parts.iter().map(partition).collect())
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
    fn a_request_is_what_others_make_of_it() {
        let (small, large) = (vec![1; 100], vec![2; 70_000]);
        let [orders, a, long_name] = ["orders.v1", "a", &"t".repeat(200)].map(Arc::<str>::from);
        let part = |topic, partition, batch| Part {
            topic,
            partition,
            batch,
            first: 0,
        };
        for parts in [
            vec![part(&orders, 3, &small)],
            vec![
                part(&a, 0, &small),
                part(&a, 1, &large),
                part(&long_name, 200, &small),
            ],
        ] {
            let frame = ProduceRequestFrame::new(&parts, 77, 2_000);
            let pieces = frame.slices(&parts);
            let whole: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| piece.iter().copied())
                .collect();
            assert_eq!(whole, reference(&parts));
        }
    }
}
