//! Validates every length in a response against the received bytes before the response is decoded.
//!
//! `kafka-protocol` reserves memory for the number of elements that an array announces. A few bytes can announce four
//! billion, and the process would abort. The peer may not be a broker, and responds before authentication. The layouts
//! are those of <https://kafka.apache.org/protocol>, for the requested versions.

use kafka_protocol::messages::ApiKey;

/// A field of a response, or of an element of an array in it.
enum Field {
    /// A fixed number of bytes.
    Fixed(usize),
    /// A string with a 16-bit length; -1 is null.
    String,
    /// A string or bytes with a varint of the length plus one; 0 is null (KIP-482).
    CompactString,
    /// Elements with a 32-bit count.
    Array(&'static [Self]),
    /// Elements with a varint of the count plus one (KIP-482).
    CompactArray(&'static [Self]),
    /// Tagged fields (KIP-482), each with tag and size. Those listed are decoded regardless of their size.
    Tags(&'static [(u32, &'static [Self])]),
}

use Field::{Array, CompactArray, CompactString, Fixed, String, Tags};

const NO_TAGS: Field = Tags(&[]);

/// ApiVersions, version 3.
const API_VERSIONS: &[Field] = &[
    Fixed(2),
    CompactArray(&[Fixed(2 + 2 + 2), NO_TAGS]),
    Fixed(4),
    Tags(&[
        (0, &[CompactArray(FEATURE)]),
        (1, &[Fixed(8)]),
        (2, &[CompactArray(FEATURE)]),
        (3, &[Fixed(1)]),
    ]),
];
const FEATURE: &[Field] = &[CompactString, Fixed(2 + 2), NO_TAGS];
/// Metadata, version 9.
const METADATA_9: &[Field] = &metadata(&[
    Fixed(2),
    CompactString,
    Fixed(1),
    METADATA_PARTITIONS,
    Fixed(4),
    NO_TAGS,
]);
/// Metadata, version 10, with topic ids.
const METADATA_10: &[Field] = &metadata(&[
    Fixed(2),
    CompactString,
    Fixed(16),
    Fixed(1),
    METADATA_PARTITIONS,
    Fixed(4),
    NO_TAGS,
]);
const METADATA_PARTITIONS: Field = CompactArray(&[
    Fixed(2 + 4 + 4 + 4),
    CompactArray(&[Fixed(4)]),
    CompactArray(&[Fixed(4)]),
    CompactArray(&[Fixed(4)]),
    NO_TAGS,
]);
const fn metadata(topic: &'static [Field]) -> [Field; 7] {
    [
        Fixed(4),
        CompactArray(&[Fixed(4), CompactString, Fixed(4), CompactString, NO_TAGS]),
        CompactString,
        Fixed(4),
        CompactArray(topic),
        Fixed(4),
        NO_TAGS,
    ]
}
/// OffsetForLeaderEpoch, version 3.
const OFFSET_FOR_LEADER_EPOCH: &[Field] =
    &[Fixed(4), Array(&[String, Array(&[Fixed(2 + 4 + 4 + 8)])])];
/// FindCoordinator, version 3.
const FIND_COORDINATOR: &[Field] = &[
    Fixed(4 + 2),
    CompactString,
    Fixed(4),
    CompactString,
    Fixed(4),
    NO_TAGS,
];
/// InitProducerId, version 4.
const INIT_PRODUCER_ID: &[Field] = &[Fixed(4 + 2 + 8 + 2), NO_TAGS];
/// DescribeConfigs, version 4.
const DESCRIBE_CONFIGS: &[Field] = &[
    Fixed(4),
    CompactArray(&[
        Fixed(2),
        CompactString,
        Fixed(1),
        CompactString,
        CompactArray(&[
            CompactString,
            CompactString,
            Fixed(1 + 1 + 1),
            CompactArray(&[CompactString, CompactString, Fixed(1), NO_TAGS]),
            Fixed(1),
            CompactString,
            NO_TAGS,
        ]),
        NO_TAGS,
    ]),
    NO_TAGS,
];
/// SaslHandshake, version 1.
const SASL_HANDSHAKE: &[Field] = &[Fixed(2), Array(&[String])];
/// SaslAuthenticate, version 2.
const SASL_AUTHENTICATE: &[Field] = &[
    Fixed(2),
    CompactString,
    // Bytes, which are encoded like a string.
    CompactString,
    Fixed(8),
    NO_TAGS,
];
/// Produce, version 9.
const PRODUCE: &[Field] = &[
    CompactArray(&[
        CompactString,
        CompactArray(&[
            Fixed(4 + 2 + 8 + 8 + 8),
            CompactArray(&[Fixed(4), CompactString, NO_TAGS]),
            CompactString,
            NO_TAGS,
        ]),
        NO_TAGS,
    ]),
    Fixed(4),
    NO_TAGS,
];

/// A response with an invalid layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed response: a length exceeds the received bytes")]
pub struct MalformedResponse;

/// Validates the body of a response to the API with this key and version.
///
/// # Errors
/// If a length exceeds the received bytes, or responses of this API and version are never decoded.
pub fn validate(api_key: i16, version: i16, body: &[u8]) -> Result<(), MalformedResponse> {
    let layout = match (ApiKey::try_from(api_key), version) {
        (Ok(ApiKey::ApiVersions), 3) => API_VERSIONS,
        (Ok(ApiKey::Metadata), 9) => METADATA_9,
        (Ok(ApiKey::Metadata), 10) => METADATA_10,
        (Ok(ApiKey::OffsetForLeaderEpoch), 3) => OFFSET_FOR_LEADER_EPOCH,
        (Ok(ApiKey::FindCoordinator), 3) => FIND_COORDINATOR,
        (Ok(ApiKey::InitProducerId), 4) => INIT_PRODUCER_ID,
        (Ok(ApiKey::DescribeConfigs), 4) => DESCRIBE_CONFIGS,
        (Ok(ApiKey::SaslHandshake), 1) => SASL_HANDSHAKE,
        (Ok(ApiKey::SaslAuthenticate), 2) => SASL_AUTHENTICATE,
        (Ok(ApiKey::Produce), 9) => PRODUCE,
        _ => return Err(MalformedResponse),
    };
    Rest(body).skip_all(layout)
}

/// The rest of a response.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn skip_all(&mut self, fields: &[Field]) -> Result<(), MalformedResponse> {
        fields.iter().try_for_each(|field| self.skip(field))
    }

    fn skip(&mut self, field: &Field) -> Result<(), MalformedResponse> {
        match field {
            Fixed(bytes) => self.take(*bytes).map(drop),
            String => {
                let length = i16::from_be_bytes(self.take_array()?);
                self.take(usize::try_from(length).unwrap_or(0)).map(drop)
            }
            CompactString => {
                let length = self.varint()?.saturating_sub(1);
                self.take(length as usize).map(drop)
            }
            Array(element) => {
                let count = i32::from_be_bytes(self.take_array()?);
                self.skip_elements(u32::try_from(count).unwrap_or(0), element)
            }
            CompactArray(element) => {
                let count = self.varint()?.saturating_sub(1);
                self.skip_elements(count, element)
            }
            Tags(known) => {
                for _ in 0..self.varint()? {
                    let (tag, size) = (self.varint()?, self.varint()?);
                    match known.iter().find(|(known, _)| *known == tag) {
                        Some((_, fields)) => self.skip_all(fields)?,
                        None => self.take(size as usize).map(drop)?,
                    }
                }
                Ok(())
            }
        }
    }

    fn skip_elements(&mut self, count: u32, element: &[Field]) -> Result<(), MalformedResponse> {
        // Every element takes at least one byte, so an excessive count fails early.
        (0..count).try_for_each(|_| self.skip_all(element))
    }

    fn take(&mut self, length: usize) -> Result<&[u8], MalformedResponse> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(MalformedResponse)?;
        self.0 = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], MalformedResponse> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Reads a base-128 varint, least significant group first. Bits beyond 32 are dropped, as in the decoder.
    fn varint(&mut self) -> Result<u32, MalformedResponse> {
        let mut value = 0;
        for shift in (0..).step_by(7).take(5) {
            let [byte] = self.take_array()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::{
        messages::{
            ApiVersionsRequest, ApiVersionsResponse, BrokerId, DescribeConfigsRequest,
            DescribeConfigsResponse, FindCoordinatorRequest, FindCoordinatorResponse,
            InitProducerIdRequest, InitProducerIdResponse, MetadataRequest, MetadataResponse,
            OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, ProduceRequest,
            ProduceResponse, ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse,
            SaslHandshakeRequest, SaslHandshakeResponse, TopicName,
            api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey},
            describe_configs_response::{
                DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
            },
            metadata_response::{
                MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
            },
            offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
            produce_response::{
                BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
            },
        },
        protocol::{Decodable, Encodable, Request, StrBytes},
    };
    use proptest::{collection::vec, prelude::*};
    use uuid::Uuid;

    use super::*;

    /// An encoded response and its decoder.
    struct Case {
        key: i16,
        version: i16,
        body: Vec<u8>,
        decode: fn(Bytes) -> bool,
    }

    fn case<R: Request>(version: i16, response: &R::Response, decode: fn(Bytes) -> bool) -> Case
    where
        R::Response: Encodable,
    {
        let mut body = BytesMut::new();
        response.encode(&mut body, version).unwrap();
        Case {
            key: R::KEY,
            version,
            body: body.to_vec(),
            decode,
        }
    }

    fn text(text: &'static str) -> StrBytes {
        StrBytes::from_static_str(text)
    }

    macro_rules! case {
        ($request:ty, $version:literal, $response:expr) => {
            case::<$request>($version, &$response, |mut body| {
                <$request as Request>::Response::decode(&mut body, $version).is_ok()
            })
        };
    }

    fn topic() -> TopicName {
        TopicName(text("users.v1"))
    }

    fn metadata() -> MetadataResponse {
        MetadataResponse::default()
            .with_brokers(vec![
                MetadataResponseBroker::default()
                    .with_host(text("broker"))
                    .with_rack(Some(text("rack")));
                2
            ])
            .with_cluster_id(Some(text("cluster")))
            .with_topics(vec![
                MetadataResponseTopic::default()
                    .with_name(Some(topic()))
                    .with_partitions(vec![
                                MetadataResponsePartition::default()
                                    .with_replica_nodes(vec![BrokerId(1); 3])
                                    .with_isr_nodes(vec![BrokerId(1); 2])
                                    .with_offline_replicas(vec![BrokerId(2)]);
                                2
                            ]);
                2
            ])
    }

    fn with_topic_ids(mut response: MetadataResponse, id: Uuid) -> MetadataResponse {
        for topic in &mut response.topics {
            topic.topic_id = id;
        }
        response
    }

    /// One response of every decoded API, with elements in each array.
    fn cases() -> Vec<Case> {
        vec![
            case!(
                ApiVersionsRequest,
                3,
                ApiVersionsResponse::default()
                    .with_api_keys(vec![ApiVersion::default(); 3])
                    .with_supported_features(vec![SupportedFeatureKey::default(); 2])
                    .with_finalized_features_epoch(7)
                    .with_finalized_features(vec![FinalizedFeatureKey::default()])
                    .with_zk_migration_ready(true)
                    .with_unknown_tagged_field(9, Bytes::from_static(b"later"))
            ),
            case!(MetadataRequest, 9, metadata()),
            case!(
                MetadataRequest,
                10,
                with_topic_ids(metadata(), Uuid::from_u128(7))
            ),
            case!(
                OffsetForLeaderEpochRequest,
                3,
                OffsetForLeaderEpochResponse::default().with_topics(vec![
                    OffsetForLeaderTopicResult::default()
                        .with_topic(topic())
                        .with_partitions(vec![EpochEndOffset::default(); 2]);
                    2
                ])
            ),
            case!(
                FindCoordinatorRequest,
                3,
                FindCoordinatorResponse::default()
                    .with_host(text("broker"))
                    .with_error_message(Some(text("none")))
            ),
            case!(InitProducerIdRequest, 4, InitProducerIdResponse::default()),
            case!(
                DescribeConfigsRequest,
                4,
                DescribeConfigsResponse::default().with_results(vec![
                    DescribeConfigsResult::default()
                        .with_resource_name(text("users.v1"))
                        .with_configs(vec![
                            DescribeConfigsResourceResult::default()
                                .with_name(text("max.message.bytes"))
                                .with_value(Some(text("1000")))
                                .with_synonyms(vec![
                                    DescribeConfigsSynonym::default(
                                    );
                                    2
                                ]);
                            2
                        ])
                ])
            ),
            case!(
                SaslHandshakeRequest,
                1,
                SaslHandshakeResponse::default().with_mechanisms(vec![text("PLAIN"); 2])
            ),
            case!(
                SaslAuthenticateRequest,
                2,
                SaslAuthenticateResponse::default()
                    .with_error_message(Some(text("none")))
                    .with_auth_bytes(Bytes::from_static(b"r=x"))
            ),
            case!(
                ProduceRequest,
                9,
                ProduceResponse::default().with_responses(vec![
                    TopicProduceResponse::default()
                        .with_name(topic())
                        .with_partition_responses(vec![
                            PartitionProduceResponse::default()
                                .with_record_errors(vec![BatchIndexAndErrorMessage::default(); 2])
                                .with_error_message(Some(text("none")));
                            2
                        ]);
                    2
                ])
            ),
        ]
    }

    #[test]
    fn a_valid_response_passes_and_is_decoded() {
        for Case {
            key,
            version,
            body,
            decode,
        } in cases()
        {
            assert_eq!(validate(key, version, &body), Ok(()), "{key}");
            assert!(decode(body.into()), "{key}");
        }
    }

    #[test]
    fn a_truncated_response_does_not_pass() {
        for Case {
            key, version, body, ..
        } in cases()
        {
            for length in 0..body.len() {
                assert_eq!(
                    validate(key, version, &body[..length]),
                    Err(MalformedResponse),
                    "{key} {length}"
                );
            }
        }
    }

    /// The decoder would reserve memory for it and abort the process.
    #[test]
    fn an_array_of_four_billion_elements_does_not_pass() {
        const MAX: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x0f];
        let arrays = [
            (ApiVersionsRequest::KEY, 3, [&[0, 0][..], &MAX].concat()),
            (MetadataRequest::KEY, 9, [&[0; 4][..], &MAX].concat()),
            (MetadataRequest::KEY, 10, [&[0; 4][..], &MAX].concat()),
            (
                OffsetForLeaderEpochRequest::KEY,
                3,
                vec![0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff],
            ),
            (DescribeConfigsRequest::KEY, 4, [&[0; 4][..], &MAX].concat()),
            (ProduceRequest::KEY, 9, MAX.to_vec()),
            (
                SaslHandshakeRequest::KEY,
                1,
                vec![0, 0, 0x7f, 0xff, 0xff, 0xff],
            ),
            // In a tagged field.
            (
                ApiVersionsRequest::KEY,
                3,
                [&[0, 0, 1, 0, 0, 0, 0, 1, 0, 5][..], &MAX].concat(),
            ),
        ];
        for (key, version, body) in arrays {
            assert_eq!(
                validate(key, version, &body),
                Err(MalformedResponse),
                "{key}"
            );
        }
    }

    fn any_case(which: prop::sample::Index) -> Case {
        let mut cases = cases();
        let index = which.index(cases.len());
        cases.swap_remove(index)
    }

    /// Replacements of some bytes of a response.
    fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, Vec<u8>)>> {
        let bytes = prop_oneof![
            vec(any::<u8>(), 1..6),
            // Large numbers, as varints and as fixed-size integers.
            vec(Just(0xff_u8), 1..6),
            Just(vec![0xff, 0xff, 0xff, 0x7f]),
            Just(vec![0x7f, 0xff, 0xff, 0xff]),
        ];
        vec((any::<prop::sample::Index>(), bytes), 1..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Neither validation nor decoding panics or aborts the process.
        #[test]
        fn a_corrupt_response_does_not_panic(which in any::<prop::sample::Index>(), mutations in mutations()) {
            let Case { key, version, mut body, decode } = any_case(which);
            for (at, bytes) in mutations {
                let at = at.index(body.len());
                let end = body.len().min(at + bytes.len());
                body.splice(at..end, bytes);
            }
            if validate(key, version, &body).is_ok() {
                decode(body.into());
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(which in any::<prop::sample::Index>(), body in vec(any::<u8>(), 0..300)) {
            let Case { key, version, decode, .. } = any_case(which);
            if validate(key, version, &body).is_ok() {
                decode(body.into());
            }
        }

        #[test]
        fn an_arbitrary_header_does_not_panic(bytes in vec(any::<u8>(), 0..50), version in 0..2_i16) {
            let _ = ResponseHeader::decode(&mut Bytes::from(bytes), version);
        }
    }
}
