//! Checks every length in a response against the bytes that came, before it is decoded.
//!
//! `kafka-protocol` reserves memory for as many elements as an array says that it has, and a few bytes can say four
//! billion: the process would abort. Whoever answers may be no broker at all, and may answer before any login. The layouts
//! are those of <https://kafka.apache.org/protocol>, of the versions that are asked for.

use kafka_protocol::messages::ApiKey;

/// A field of a response, or of an element of an array in it.
enum Field {
    /// A number or a boolean of so many bytes.
    Fixed(usize),
    /// A string or bytes, with a length of 16 bits before it: -1 for null.
    String,
    /// The same with a varint that is one more than the length: 0 for null.
    CompactString,
    /// Elements, with a count of 32 bits before them.
    Array(&'static [Self]),
    /// Elements, with a varint before them that is one more than their count.
    CompactArray(&'static [Self]),
    /// Optional fields, each with its tag and its size. The decoder knows the layout of some, and looks at no size of these.
    Tags(&'static [(u32, &'static [Self])]),
}

use Field::{Array, CompactArray, CompactString, Fixed, String, Tags};

const NO_TAGS: Field = Tags(&[]);

/// Version 3.
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
/// Version 9.
const METADATA: &[Field] = &[
    Fixed(4),
    CompactArray(&[Fixed(4), CompactString, Fixed(4), CompactString, NO_TAGS]),
    CompactString,
    Fixed(4),
    CompactArray(&[
        Fixed(2),
        CompactString,
        Fixed(1),
        CompactArray(&[
            Fixed(2 + 4 + 4 + 4),
            CompactArray(&[Fixed(4)]),
            CompactArray(&[Fixed(4)]),
            CompactArray(&[Fixed(4)]),
            NO_TAGS,
        ]),
        Fixed(4),
        NO_TAGS,
    ]),
    Fixed(4),
    NO_TAGS,
];
/// Version 3.
const FIND_COORDINATOR: &[Field] = &[
    Fixed(4 + 2),
    CompactString,
    Fixed(4),
    CompactString,
    Fixed(4),
    NO_TAGS,
];
/// Version 4.
const INIT_PRODUCER_ID: &[Field] = &[Fixed(4 + 2 + 8 + 2), NO_TAGS];
/// Version 4.
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
/// Version 1.
const SASL_HANDSHAKE: &[Field] = &[Fixed(2), Array(&[String])];
/// Version 2.
const SASL_AUTHENTICATE: &[Field] = &[
    Fixed(2),
    CompactString,
    // Bytes, which look the same.
    CompactString,
    Fixed(8),
    NO_TAGS,
];
/// Version 9.
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

/// The response is not laid out as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed response: a length in it exceeds the bytes that came")]
pub(super) struct MalformedResponse;

/// Checks the body of a response to the API with this key.
///
/// # Errors
/// If a length in it exceeds what came, or if nothing of this API is ever decoded.
pub(super) fn check(api_key: i16, body: &[u8]) -> Result<(), MalformedResponse> {
    let layout = match ApiKey::try_from(api_key) {
        Ok(ApiKey::ApiVersions) => API_VERSIONS,
        Ok(ApiKey::Metadata) => METADATA,
        Ok(ApiKey::FindCoordinator) => FIND_COORDINATOR,
        Ok(ApiKey::InitProducerId) => INIT_PRODUCER_ID,
        Ok(ApiKey::DescribeConfigs) => DESCRIBE_CONFIGS,
        Ok(ApiKey::SaslHandshake) => SASL_HANDSHAKE,
        Ok(ApiKey::SaslAuthenticate) => SASL_AUTHENTICATE,
        Ok(ApiKey::Produce) => PRODUCE,
        _ => return Err(MalformedResponse),
    };
    Rest(body).skip_all(layout)
}

/// What of a response was not looked at yet.
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
        // No element takes no bytes, so that a count beyond what came is noticed soon.
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

    /// A number in base 128, the lowest seven bits first. Bits beyond 32 are dropped, as the decoder does.
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
            ProduceRequest, ProduceResponse, ResponseHeader, SaslAuthenticateRequest,
            SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse, TopicName,
            api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey},
            describe_configs_response::{
                DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
            },
            metadata_response::{
                MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
            },
            produce_response::{
                BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
            },
        },
        protocol::{Decodable, Encodable, Request, StrBytes},
    };
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A response as a broker would send it, and what decodes such a one.
    struct Case {
        key: i16,
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

    /// Every response that is ever decoded, with something in each of its arrays.
    fn cases() -> Vec<Case> {
        let topic = || TopicName(text("users.v1"));
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
            case!(
                MetadataRequest,
                9,
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
    fn what_a_broker_sends_passes_and_is_decoded() {
        for Case { key, body, decode } in cases() {
            assert_eq!(check(key, &body), Ok(()), "{key}");
            assert!(decode(body.into()), "{key}");
        }
    }

    #[test]
    fn what_was_cut_off_does_not_pass() {
        for Case { key, body, .. } in cases() {
            for length in 0..body.len() {
                assert_eq!(
                    check(key, &body[..length]),
                    Err(MalformedResponse),
                    "{key} {length}"
                );
            }
        }
    }

    /// A decoder that reserves memory for it ends the process.
    #[test]
    fn an_array_of_four_billion_elements_does_not_pass() {
        const MAX: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x0f];
        let arrays = [
            (ApiVersionsRequest::KEY, [&[0, 0][..], &MAX].concat()),
            (MetadataRequest::KEY, [&[0; 4][..], &MAX].concat()),
            (DescribeConfigsRequest::KEY, [&[0; 4][..], &MAX].concat()),
            (ProduceRequest::KEY, MAX.to_vec()),
            (
                SaslHandshakeRequest::KEY,
                vec![0, 0, 0x7f, 0xff, 0xff, 0xff],
            ),
            // In a field that has a tag.
            (
                ApiVersionsRequest::KEY,
                [&[0, 0, 1, 0, 0, 0, 0, 1, 0, 5][..], &MAX].concat(),
            ),
        ];
        for (key, body) in arrays {
            assert_eq!(check(key, &body), Err(MalformedResponse), "{key}");
        }
    }

    /// Some of the bytes of a response, replaced.
    fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, Vec<u8>)>> {
        let bytes = prop_oneof![
            vec(any::<u8>(), 1..6),
            // Numbers that are large, as varints and as they are.
            vec(Just(0xff_u8), 1..6),
            Just(vec![0xff, 0xff, 0xff, 0x7f]),
            Just(vec![0x7f, 0xff, 0xff, 0xff]),
        ];
        vec((any::<prop::sample::Index>(), bytes), 1..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Neither the check nor the decoder behind it panics or ends the process.
        #[test]
        fn no_response_does_harm(which in 0..8_usize, mutations in mutations()) {
            let Case { key, mut body, decode } = cases().swap_remove(which);
            for (at, bytes) in mutations {
                let at = at.index(body.len());
                let end = body.len().min(at + bytes.len());
                body.splice(at..end, bytes);
            }
            if check(key, &body).is_ok() {
                decode(body.into());
            }
        }

        #[test]
        fn no_bytes_do_harm(which in 0..8_usize, body in vec(any::<u8>(), 0..300)) {
            let Case { key, decode, .. } = cases().swap_remove(which);
            if check(key, &body).is_ok() {
                decode(body.into());
            }
        }

        #[test]
        fn no_header_does_harm(bytes in vec(any::<u8>(), 0..50), version in 0..2_i16) {
            let _ = ResponseHeader::decode(&mut Bytes::from(bytes), version);
        }
    }
}
