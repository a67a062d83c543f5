//! Topics in metadata responses.

use std::collections::{HashMap, HashSet};

use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        MetadataRequest, MetadataResponse, TopicName, metadata_request::MetadataRequestTopic,
        metadata_response::MetadataResponsePartition,
    },
    protocol::StrBytes,
};
use uuid::Uuid;

use crate::{Error, connection::unavailable};

/// A topic in a broker's metadata, which may be slightly outdated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMetadata {
    /// The id, which a topic created again under the same name does not share. Nil before Kafka 2.8 (KIP-516).
    pub topic_id: Uuid,
    /// The partitions, by their number.
    pub partitions: Vec<PartitionMetadata>,
}

/// A partition in a broker's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// The broker that leads the partition; `None` during an election.
    pub leader: Option<i32>,
    /// The number of the leader's term, which each election increases (KIP-101); -1 if the broker does not know it.
    pub leader_epoch: i32,
}

/// Returns a request for these topics.
pub(crate) fn request(topics: &[&str]) -> MetadataRequest {
    let topic = |name: &&str| {
        let name = TopicName(StrBytes::from_string((*name).to_owned()));
        MetadataRequestTopic::default().with_name(Some(name))
    };
    MetadataRequest::default()
        .with_topics(Some(topics.iter().map(topic).collect()))
        .with_allow_auto_topic_creation(false)
}

/// Returns the requested topics, without those that do not exist.
pub(crate) fn parse_topics(
    response: MetadataResponse,
    requested: &[&str],
    address: &str,
) -> Result<HashMap<String, TopicMetadata>, Error> {
    let malformed = |what: &str| unavailable(address, format!("malformed response: {what}"));
    let mut topics = HashMap::new();
    let mut expected: HashSet<&str> = requested.iter().copied().collect();
    for topic in response.topics {
        let name = topic.name.map(|name| name.to_string()).unwrap_or_default();
        if !expected.remove(&*name) {
            return Err(malformed(&format!(
                "duplicate or unrequested topic {name:?}"
            )));
        }
        match topic.error_code.err() {
            None => {}
            Some(ResponseError::UnknownTopicOrPartition) => continue,
            Some(ResponseError::TopicAuthorizationFailed) => return Err(Error::TopicDenied(name)),
            Some(ResponseError::InvalidTopicException) => return Err(Error::InvalidTopic(name)),
            Some(err) => return Err(unavailable(address, err)),
        }
        let Some(partitions) = parse_partitions(&topic.partitions) else {
            let what = format!("missing or duplicate partitions of topic {name}");
            return Err(malformed(&what));
        };
        let topic_id = topic.topic_id;
        topics.insert(
            name,
            TopicMetadata {
                topic_id,
                partitions,
            },
        );
    }
    match expected.into_iter().next() {
        None => Ok(topics),
        // A topic that does not exist is in the response with an error.
        Some(name) => Err(malformed(&format!("no metadata of topic {name}"))),
    }
}

/// Returns the partitions by number, or `None` if one is missing or duplicate: a wrong count would assign keys to wrong
/// partitions.
fn parse_partitions(partitions: &[MetadataResponsePartition]) -> Option<Vec<PartitionMetadata>> {
    let mut found = vec![None; partitions.len()];
    for partition in partitions {
        let index = usize::try_from(partition.partition_index).ok()?;
        let metadata = PartitionMetadata {
            leader: (partition.leader_id.0 >= 0).then_some(partition.leader_id.0),
            leader_epoch: partition.leader_epoch,
        };
        if found.get_mut(index)?.replace(metadata).is_some() {
            return None;
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_or_duplicate_partitions_are_invalid() {
        let partitions = |numbers: &[(i32, i32)]| -> Vec<MetadataResponsePartition> {
            let partition = |(index, leader): &(i32, i32)| {
                MetadataResponsePartition::default()
                    .with_partition_index(*index)
                    .with_leader_id((*leader).into())
            };
            numbers.iter().map(partition).collect()
        };
        let found = parse_partitions(&partitions(&[(1, -1), (0, 7)])).unwrap();
        let leaders: Vec<_> = found.iter().map(|partition| partition.leader).collect();
        assert_eq!(leaders, [Some(7), None]);
        for numbers in [
            &[(0, 7), (2, 7)][..],
            &[(0, 7), (0, 7)],
            &[(-1, 7)],
            &[(1, 7)],
        ] {
            assert_eq!(parse_partitions(&partitions(numbers)), None, "{numbers:?}");
        }
    }
}
