//! Requests other than Produce: partition leaders, topic limits, and producer ids.

mod inspect;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use backon::{BackoffBuilder as _, ConstantBuilder};
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        ApiVersionsRequest, BrokerId, DescribeConfigsRequest, FindCoordinatorRequest,
        InitProducerIdRequest, InitProducerIdResponse, MetadataRequest, MetadataResponse,
        ProduceRequest, TopicName, TransactionalId,
        describe_configs_request::DescribeConfigsResource, metadata_request::MetadataRequestTopic,
        metadata_response::MetadataResponsePartition,
    },
    protocol::{Request, StrBytes},
};
use tokio::time::Instant;

pub(crate) use self::inspect::{Inspector, Permission, TopicFacts};

use super::{
    connection::{Connection, unavailable},
    dial::dial,
    record_batch::Producer,
};
use crate::{config::KafkaConfig, kafka::SinkError};

// The request versions, each the oldest with the features used here. Kafka 2.8 to 4 support all of them.
pub(super) const PRODUCE_VERSION: i16 = 9;
const API_VERSIONS_VERSION: i16 = 3;
const METADATA_VERSION: i16 = 9;
const FIND_COORDINATOR_VERSION: i16 = 3;
const INIT_PRODUCER_ID_VERSION: i16 = 4;
const DESCRIBE_CONFIGS_VERSION: i16 = 4;

const COORDINATOR_OF_TRANSACTIONS: i8 = 1;
const RESOURCE_TOPIC: i8 = 2;
/// The limit on waiting for a transaction coordinator, which loads its state after a broker's start.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(15);
/// The minimum pause between attempts; jitter at most doubles it.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Irrelevant because no transaction is started, but brokers require a valid value.
const TRANSACTION_TIMEOUT_MS: i32 = 60_000;

/// A client of a cluster, connected to one broker.
pub(super) struct Cluster {
    connection: Connection,
    kafka: KafkaConfig,
    brokers: HashMap<BrokerId, String>,
}

/// The partitions of a topic.
#[derive(Debug)]
pub(super) struct TopicLayout {
    /// The leader of each partition; `None` during an election.
    pub(super) leaders: Vec<Option<BrokerId>>,
}

/// The result of registering a transactional id.
pub(super) enum Registration {
    /// The producer to use; all earlier producers with this id are fenced.
    Registered(Producer),
    /// The ACLs do not allow this client to use the id.
    Denied,
}

impl Cluster {
    /// Connects to the first broker in `kafka.brokers` that responds.
    pub(super) async fn connect(kafka: &KafkaConfig) -> Result<Self, SinkError> {
        let mut last = SinkError::Unavailable("no brokers are configured".into());
        for address in kafka.brokers.split(',').map(str::trim) {
            match Self::connect_to(address, kafka).await {
                Ok(cluster) => return Ok(cluster),
                Err(err) => last = err,
            }
        }
        Err(last)
    }

    async fn connect_to(address: &str, kafka: &KafkaConfig) -> Result<Self, SinkError> {
        let mut connection = dial(address, kafka).await?;
        verify_api_versions(&mut connection, kafka.delivery_timeout).await?;
        let mut cluster = Self {
            connection,
            kafka: kafka.clone(),
            brokers: HashMap::new(),
        };
        cluster.metadata(&[]).await?;
        Ok(cluster)
    }

    /// Returns the address of a broker from the last metadata.
    pub(super) fn address(&self, broker: BrokerId) -> Result<&str, SinkError> {
        let address = self.brokers.get(&broker).map(String::as_str);
        address.ok_or_else(|| {
            SinkError::Unavailable(format!("broker {} is not in the metadata", broker.0))
        })
    }

    /// Fetches the layouts of topics. Missing topics are left out of the result.
    pub(super) async fn layouts(
        &mut self,
        topics: &[&str],
    ) -> Result<HashMap<String, TopicLayout>, SinkError> {
        let metadata = self.metadata(topics).await?;
        let mut layouts = HashMap::new();
        let mut expected: HashSet<&str> = topics.iter().copied().collect();
        for topic in metadata.topics {
            let name = topic.name.map(|name| name.to_string()).unwrap_or_default();
            if !expected.remove(&*name) {
                return Err(self.malformed(&format!("duplicate or unrequested topic {name:?}")));
            }
            match topic.error_code.err() {
                None => {}
                Some(ResponseError::UnknownTopicOrPartition) => continue,
                Some(
                    err @ (ResponseError::TopicAuthorizationFailed
                    | ResponseError::InvalidTopicException),
                ) => return Err(SinkError::rejected(&name, err)),
                Some(err) => return Err(unavailable(&self.connection.address, err)),
            }
            let Some(leaders) = leaders(&topic.partitions) else {
                return Err(
                    self.malformed(&format!("missing or duplicate partitions of topic {name}"))
                );
            };
            layouts.insert(name, TopicLayout { leaders });
        }
        match expected.into_iter().next() {
            None => Ok(layouts),
            // A topic that does not exist is in the response with an error.
            Some(name) => Err(self.malformed(&format!("no metadata of topic {name}"))),
        }
    }

    fn malformed(&self, what: &str) -> SinkError {
        unavailable(
            &self.connection.address,
            format!("malformed response: {what}"),
        )
    }

    async fn metadata(&mut self, topics: &[&str]) -> Result<MetadataResponse, SinkError> {
        let topic =
            |name: &&str| MetadataRequestTopic::default().with_name(Some(TopicName(owned(name))));
        let request = MetadataRequest::default()
            .with_topics(Some(topics.iter().map(topic).collect()))
            .with_allow_auto_topic_creation(false);
        let metadata = self.call(&request, METADATA_VERSION).await?;
        self.brokers = metadata
            .brokers
            .iter()
            .map(|broker| (broker.node_id, format!("{}:{}", broker.host, broker.port)))
            .collect();
        Ok(metadata)
    }

    /// Returns the topic's `max.message.bytes`, or `None` if this client may not describe the topic's configuration.
    pub(super) async fn max_message_bytes(
        &mut self,
        topic: &str,
    ) -> Result<Option<usize>, SinkError> {
        const NAME: &str = "max.message.bytes";
        let resource = DescribeConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(owned(topic))
            .with_configuration_keys(Some(vec![StrBytes::from_static_str(NAME)]));
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let response = self.call(&request, DESCRIBE_CONFIGS_VERSION).await?;
        let results = response.results.into_iter();
        let configs = results
            .filter(|result| &*result.resource_name == topic)
            .flat_map(|result| result.configs);
        let value = configs
            .filter(|config| &*config.name == NAME)
            .find_map(|c| c.value);
        Ok(value.and_then(|value| value.parse().ok()))
    }

    /// Requests a producer id without a transactional id: idempotent, but without fencing.
    pub(super) async fn unfenced_producer(&mut self) -> Result<Producer, SinkError> {
        let request = init_producer_id(None, None);
        let response = self.call(&request, INIT_PRODUCER_ID_VERSION).await?;
        match response.error_code.err() {
            None => self.producer(&response),
            Some(err) => Err(unavailable(&self.connection.address, err)),
        }
    }

    /// Returns the producer of a successful response.
    fn producer(&self, response: &InitProducerIdResponse) -> Result<Producer, SinkError> {
        let (id, epoch) = (response.producer_id.0, response.producer_epoch);
        if id < 0 || epoch < 0 {
            return Err(self.malformed(&format!("producer id {id} with epoch {epoch}")));
        }
        Ok(Producer { id, epoch })
    }

    /// Registers a transactional id: returns its producer id with a new, higher epoch. With `current` it fails if another
    /// producer registered since (KIP-360).
    pub(super) async fn register_producer(
        &mut self,
        name: &str,
        current: Option<Producer>,
    ) -> Result<Registration, SinkError> {
        let deadline = Instant::now() + COORDINATOR_TIMEOUT;
        let pauses = ConstantBuilder::new().with_delay(RETRY_PAUSE);
        let mut pauses = pauses.without_max_times().with_jitter().build();
        loop {
            let result = self.try_register_producer(name, current).await;
            match result {
                Ok(Err(err)) if Instant::now() < deadline => {
                    tracing::debug!(%err, "transaction coordinator is not ready");
                    tokio::time::sleep(pauses.next().unwrap_or(RETRY_PAUSE)).await;
                }
                Ok(Err(err)) => return Err(unavailable(&self.connection.address, err)),
                Ok(Ok(registration)) => return Ok(registration),
                Err(err) => return Err(err),
            }
        }
    }

    /// Makes one attempt. The inner error is retriable.
    async fn try_register_producer(
        &mut self,
        name: &str,
        current: Option<Producer>,
    ) -> Result<Result<Registration, ResponseError>, SinkError> {
        let request = FindCoordinatorRequest::default()
            .with_key(owned(name))
            .with_key_type(COORDINATOR_OF_TRANSACTIONS);
        let found = self.call(&request, FIND_COORDINATOR_VERSION).await?;
        let error = match found.error_code.err() {
            None => {
                let address = format!("{}:{}", found.host, found.port);
                let mut coordinator = dial(&address, &self.kafka).await?;
                let request = init_producer_id(Some(name), current);
                let (version, timeout) = (INIT_PRODUCER_ID_VERSION, self.kafka.delivery_timeout);
                let response = coordinator.call(&request, version, timeout).await?;
                match response.error_code.err() {
                    None => return Ok(Ok(Registration::Registered(self.producer(&response)?))),
                    Some(err) => err,
                }
            }
            Some(err) => err,
        };
        use ResponseError as E;
        match error {
            E::CoordinatorNotAvailable
            | E::NotCoordinator
            | E::CoordinatorLoadInProgress
            | E::ConcurrentTransactions => Ok(Err(error)),
            E::TransactionalIdAuthorizationFailed => Ok(Ok(Registration::Denied)),
            E::InvalidProducerEpoch | E::ProducerFenced => Err(SinkError::Fenced),
            _ => Err(unavailable(&self.connection.address, error)),
        }
    }

    async fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<R::Response, SinkError> {
        if self.connection.is_stale() {
            self.connection = dial(&self.connection.address, &self.kafka).await?;
        }
        let timeout = self.kafka.delivery_timeout;
        self.connection.call(request, version, timeout).await
    }
}

/// Fails with a clear error if the broker is too old.
pub(super) async fn verify_api_versions(
    connection: &mut Connection,
    timeout: Duration,
) -> Result<(), SinkError> {
    let request = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str(super::connection::CLIENT_ID))
        .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
    let response = connection
        .call(&request, API_VERSIONS_VERSION, timeout)
        .await?;
    for (key, version) in [
        (ProduceRequest::KEY, PRODUCE_VERSION),
        (MetadataRequest::KEY, METADATA_VERSION),
        (FindCoordinatorRequest::KEY, FIND_COORDINATOR_VERSION),
        (InitProducerIdRequest::KEY, INIT_PRODUCER_ID_VERSION),
        (DescribeConfigsRequest::KEY, DESCRIBE_CONFIGS_VERSION),
    ] {
        let is_supported = response.api_keys.iter().any(|api| {
            api.api_key == key && (api.min_version..=api.max_version).contains(&version)
        });
        if !is_supported {
            let reason = format!(
                "version {version} of API key {key} is not supported; use Kafka 2.8 or newer, or \
                 set `sink = \"rdkafka\"`"
            );
            return Err(unavailable(&connection.address, reason));
        }
    }
    Ok(())
}

/// Returns the leader of each partition, or `None` if a partition is missing or duplicate: a wrong count would assign keys
/// to wrong partitions.
fn leaders(partitions: &[MetadataResponsePartition]) -> Option<Vec<Option<BrokerId>>> {
    let mut leaders = vec![None; partitions.len()];
    for partition in partitions {
        let index = usize::try_from(partition.partition_index).ok()?;
        let leader = (partition.leader_id.0 >= 0).then_some(partition.leader_id);
        if leaders.get_mut(index)?.replace(leader).is_some() {
            return None;
        }
    }
    leaders.into_iter().collect()
}

fn init_producer_id(name: Option<&str>, current: Option<Producer>) -> InitProducerIdRequest {
    let current = current.unwrap_or(Producer { id: -1, epoch: -1 });
    InitProducerIdRequest::default()
        .with_transactional_id(name.map(|name| TransactionalId(owned(name))))
        .with_transaction_timeout_ms(TRANSACTION_TIMEOUT_MS)
        .with_producer_id(current.id.into())
        .with_producer_epoch(current.epoch)
}

fn owned(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
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
        let layout = leaders(&partitions(&[(1, -1), (0, 7)]));
        assert_eq!(layout, Some(vec![Some(BrokerId(7)), None]));
        for numbers in [
            &[(0, 7), (2, 7)][..],
            &[(0, 7), (0, 7)],
            &[(-1, 7)],
            &[(1, 7)],
        ] {
            assert_eq!(leaders(&partitions(numbers)), None, "{numbers:?}");
        }
    }
}
