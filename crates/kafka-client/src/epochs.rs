//! The ends of leader epochs (KIP-101, KIP-320).

use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        ApiKey, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, TopicName,
        offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
        offset_for_leader_epoch_response::EpochEndOffset,
    },
    protocol::StrBytes,
};

use crate::{Cluster, Connection, Error, connection::unavailable, dial::dial};

/// The oldest version that clients may send. Kafka 2.3 to 4 support it.
const OFFSET_FOR_LEADER_EPOCH_VERSION: i16 = 3;
/// The value of an epoch or offset that the leader does not know.
const UNKNOWN: i32 = -1;

/// The end of a leader epoch in the log of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// The requested epoch, or the last one before it if the log has no record of the requested one.
    pub leader_epoch: i32,
    /// The offset after the epoch's last record; for the current epoch, the end of the log.
    pub end_offset: i64,
}

impl Cluster {
    /// Asks the leader of a partition where the records of `leader_epoch` end. Records with this epoch at or after that
    /// offset were truncated. `None` if the leader knows neither this epoch nor a later one: the log was truncated, or
    /// the topic was created again.
    ///
    /// # Errors
    /// [`UnknownTopic`](Error::UnknownTopic), [`UnknownPartition`](Error::UnknownPartition),
    /// [`TopicDenied`](Error::TopicDenied), or [`Unavailable`](Error::Unavailable), also during an election.
    pub async fn end_of_epoch(
        &mut self,
        topic: &str,
        partition: i32,
        leader_epoch: i32,
    ) -> Result<Option<EpochEnd>, Error> {
        let found = self.topic(topic).await?;
        let index = usize::try_from(partition).ok();
        let Some(metadata) = index.and_then(|index| found.partitions.get(index)) else {
            return Err(unknown_partition(topic, partition));
        };
        let Some(leader) = metadata.leader else {
            let reason = format!("partition {topic}-{partition} has no leader");
            return Err(Error::Unavailable(reason));
        };
        let mut connection = self.connect_to_leader(leader).await?;
        let request = request(topic, partition, leader_epoch);
        let timeout = self.options.timeout;
        let call = connection.call(&request, OFFSET_FOR_LEADER_EPOCH_VERSION, timeout);
        let response = call.await?;
        let end = parse(&response, topic, partition, &connection.address);
        self.leaders.insert(leader, connection);
        end
    }

    /// Takes the connection to a broker out of those kept, or opens one.
    async fn connect_to_leader(&mut self, leader: i32) -> Result<Connection, Error> {
        let kept = self.leaders.remove(&leader);
        let address = self.address(leader)?;
        if let Some(mut connection) = kept
            && connection.address == address
            && connection.is_open().await
        {
            return Ok(connection);
        }
        let mut connection = dial(address, &self.options).await?;
        connection.negotiate_versions(&self.options).await?;
        connection.require(
            ApiKey::OffsetForLeaderEpoch,
            OFFSET_FOR_LEADER_EPOCH_VERSION,
        )?;
        Ok(connection)
    }
}

fn request(topic: &str, partition: i32, leader_epoch: i32) -> OffsetForLeaderEpochRequest {
    // The current epoch is left out: if it were outdated, the leader would not respond with the end.
    let partition = OffsetForLeaderPartition::default()
        .with_partition(partition)
        .with_current_leader_epoch(UNKNOWN)
        .with_leader_epoch(leader_epoch);
    let topic = OffsetForLeaderTopic::default()
        .with_topic(TopicName(StrBytes::from_string(topic.to_owned())))
        .with_partitions(vec![partition]);
    OffsetForLeaderEpochRequest::default()
        .with_replica_id(UNKNOWN.into())
        .with_topics(vec![topic])
}

fn parse(
    response: &OffsetForLeaderEpochResponse,
    topic: &str,
    partition: i32,
    address: &str,
) -> Result<Option<EpochEnd>, Error> {
    let Some(end) = find(response, topic, partition) else {
        let reason = "malformed response: its partitions differ from those of the request";
        return Err(unavailable(address, reason));
    };
    use ResponseError as E;
    match end.error_code.err() {
        None => {
            let is_known = end.leader_epoch >= 0 && end.end_offset >= 0;
            Ok(is_known.then_some(EpochEnd {
                leader_epoch: end.leader_epoch,
                end_offset: end.end_offset,
            }))
        }
        Some(E::UnknownTopicOrPartition) => Err(unknown_partition(topic, partition)),
        Some(E::TopicAuthorizationFailed) => Err(Error::TopicDenied(topic.to_owned())),
        Some(err) => {
            let reason = format!("partition {topic}-{partition}: {err}");
            Err(unavailable(address, reason))
        }
    }
}

/// Returns the partition if the response has it and no other.
fn find<'a>(
    response: &'a OffsetForLeaderEpochResponse,
    name: &str,
    partition: i32,
) -> Option<&'a EpochEndOffset> {
    let [topic] = &response.topics[..] else {
        return None;
    };
    let [end] = &topic.partitions[..] else {
        return None;
    };
    (topic.topic.as_str() == name && end.partition == partition).then_some(end)
}

fn unknown_partition(topic: &str, partition: i32) -> Error {
    Error::UnknownPartition {
        topic: topic.to_owned(),
        partition,
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::offset_for_leader_epoch_response::OffsetForLeaderTopicResult;

    use super::*;

    fn response(ends: &[(&'static str, i32, i16)]) -> OffsetForLeaderEpochResponse {
        let topic = |(name, partition, error_code): &(&'static str, i32, i16)| {
            let end = EpochEndOffset::default()
                .with_partition(*partition)
                .with_error_code(*error_code)
                .with_leader_epoch(3)
                .with_end_offset(42);
            OffsetForLeaderTopicResult::default()
                .with_topic(TopicName(StrBytes::from_static_str(name)))
                .with_partitions(vec![end])
        };
        OffsetForLeaderEpochResponse::default().with_topics(ends.iter().map(topic).collect())
    }

    #[test]
    fn a_response_about_other_partitions_is_malformed() {
        let end = EpochEnd {
            leader_epoch: 3,
            end_offset: 42,
        };
        let found = parse(&response(&[("a", 1, 0)]), "a", 1, "broker");
        assert_eq!(found, Ok(Some(end)));
        for ends in [
            &[][..],
            &[("a", 0, 0)],
            &[("b", 1, 0)],
            &[("a", 1, 0), ("a", 2, 0)],
        ] {
            let found = parse(&response(ends), "a", 1, "broker");
            let reason = found.unwrap_err().to_string();
            assert!(reason.contains("malformed response"), "{reason}");
        }
    }

    #[test]
    fn error_codes_become_variants() {
        let code = |error: ResponseError| {
            let response = response(&[("a", 1, error.code())]);
            parse(&response, "a", 1, "broker").unwrap_err()
        };
        assert_eq!(
            code(ResponseError::UnknownTopicOrPartition),
            unknown_partition("a", 1)
        );
        assert_eq!(
            code(ResponseError::TopicAuthorizationFailed),
            Error::TopicDenied("a".into())
        );
        let moved = code(ResponseError::NotLeaderOrFollower);
        assert!(matches!(moved, Error::Unavailable(_)), "{moved}");
    }
}
