//! What is asked of the cluster before records flow: who leads which partition, how large a record
//! may be, and under which number to send.

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

/// The versions that are spoken, each the first with what is needed here; Kafka has had all of them
/// since 2.8 and still has them in 4.
pub(super) const PRODUCE_VERSION: i16 = 9;
const API_VERSIONS_VERSION: i16 = 3;
const METADATA_VERSION: i16 = 9;
const FIND_COORDINATOR_VERSION: i16 = 3;
const INIT_PRODUCER_ID_VERSION: i16 = 4;
const DESCRIBE_CONFIGS_VERSION: i16 = 4;

const COORDINATOR_OF_TRANSACTIONS: i8 = 1;
const RESOURCE_TOPIC: i8 = 2;
/// How long a coordinator may take to be found and ready; right after a broker's start it loads.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(15);
/// The shortest pause; chance makes it up to twice as long.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// No transaction is ever begun, so this is only a number that brokers accept.
const TRANSACTION_TIMEOUT_MS: i32 = 60_000;

/// A cluster, through one of its brokers.
pub(super) struct Cluster {
    connection: Connection,
    kafka: KafkaConfig,
    brokers: HashMap<BrokerId, String>,
}

/// A topic as the cluster has it.
#[derive(Debug)]
pub(super) struct TopicLayout {
    /// Who leads each partition; none while there is no leader.
    pub(super) leaders: Vec<Option<BrokerId>>,
}

/// What became of asking for a producer id under a name.
pub(super) enum Registration {
    /// Whoever had the name before is rejected from now on.
    Fenced(Producer),
    /// This client may not use the name.
    NotAllowed,
}

impl Cluster {
    /// Connects to the first of the brokers, `host:port` with commas between, that answers.
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
        check_versions(&mut connection, kafka.delivery_timeout).await?;
        let mut cluster = Self {
            connection,
            kafka: kafka.clone(),
            brokers: HashMap::new(),
        };
        cluster.metadata(&[]).await?;
        Ok(cluster)
    }

    /// The address of a broker that metadata has named.
    pub(super) fn address(&self, broker: BrokerId) -> Result<&str, SinkError> {
        let address = self.brokers.get(&broker).map(String::as_str);
        address.ok_or_else(|| SinkError::Unavailable(format!("broker {} is unknown", broker.0)))
    }

    /// Asks about topics; those that do not exist are not in the answer. Brokers answer in an order
    /// of their own.
    pub(super) async fn layouts(
        &mut self,
        topics: &[&str],
    ) -> Result<HashMap<String, TopicLayout>, SinkError> {
        let metadata = self.metadata(topics).await?;
        let mut layouts = HashMap::new();
        let mut missing: HashSet<&str> = topics.iter().copied().collect();
        for topic in metadata.topics {
            let name = topic.name.map(|name| name.to_string()).unwrap_or_default();
            if !missing.remove(&*name) {
                return Err(self.malformed(&format!("metadata of topic {name:?} twice or unasked")));
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
                return Err(self.malformed(&format!("partitions of topic {name} with gaps")));
            };
            layouts.insert(name, TopicLayout { leaders });
        }
        match missing.into_iter().next() {
            None => Ok(layouts),
            // One that doesn't exist is in it, with an error.
            Some(name) => Err(self.malformed(&format!("metadata without topic {name}"))),
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

    /// The topic's `max.message.bytes`; none where this client may not ask.
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
        let answer = self.call(&request, DESCRIBE_CONFIGS_VERSION).await?;
        let results = answer.results.into_iter();
        let configs = results
            .filter(|result| &*result.resource_name == topic)
            .flat_map(|result| result.configs);
        let value = configs
            .filter(|config| &*config.name == NAME)
            .find_map(|c| c.value);
        Ok(value.and_then(|value| value.parse().ok()))
    }

    /// A number to send under, with which nobody else is fenced.
    pub(super) async fn anonymous_producer(&mut self) -> Result<Producer, SinkError> {
        let request = init_producer_id(None, None);
        let answer = self.call(&request, INIT_PRODUCER_ID_VERSION).await?;
        match answer.error_code.err() {
            None => self.producer(&answer),
            Some(err) => Err(unavailable(&self.connection.address, err)),
        }
    }

    /// The producer that a response without an error names.
    fn producer(&self, answer: &InitProducerIdResponse) -> Result<Producer, SinkError> {
        let (id, epoch) = (answer.producer_id.0, answer.producer_epoch);
        if id < 0 || epoch < 0 {
            return Err(self.malformed(&format!("producer id {id} with epoch {epoch}")));
        }
        Ok(Producer { id, epoch })
    }

    /// The number that belongs to `name`, with a higher epoch than anybody had before. With
    /// `current` only if nobody has taken the name since.
    pub(super) async fn register(
        &mut self,
        name: &str,
        current: Option<Producer>,
    ) -> Result<Registration, SinkError> {
        let deadline = Instant::now() + COORDINATOR_TIMEOUT;
        let pauses = ConstantBuilder::new().with_delay(RETRY_PAUSE);
        let mut pauses = pauses.without_max_times().with_jitter().build();
        loop {
            let result = self.try_register(name, current).await;
            match result {
                Ok(Err(err)) if Instant::now() < deadline => {
                    tracing::debug!(%err, "the coordinator isn't ready");
                    tokio::time::sleep(pauses.next().unwrap_or(RETRY_PAUSE)).await;
                }
                Ok(Err(err)) => return Err(unavailable(&self.connection.address, err)),
                Ok(Ok(registration)) => return Ok(registration),
                Err(err) => return Err(err),
            }
        }
    }

    /// The inner error is one that passes.
    async fn try_register(
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
                let answer = coordinator.call(&request, version, timeout).await?;
                match answer.error_code.err() {
                    None => return Ok(Ok(Registration::Fenced(self.producer(&answer)?))),
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
            E::TransactionalIdAuthorizationFailed => Ok(Ok(Registration::NotAllowed)),
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

/// Rejects a broker that is too old, by its name, before anything fails without one.
pub(super) async fn check_versions(
    connection: &mut Connection,
    timeout: Duration,
) -> Result<(), SinkError> {
    let request = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str(super::connection::CLIENT_ID))
        .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
    let answer = connection
        .call(&request, API_VERSIONS_VERSION, timeout)
        .await?;
    for (key, version) in [
        (ProduceRequest::KEY, PRODUCE_VERSION),
        (MetadataRequest::KEY, METADATA_VERSION),
        (FindCoordinatorRequest::KEY, FIND_COORDINATOR_VERSION),
        (InitProducerIdRequest::KEY, INIT_PRODUCER_ID_VERSION),
        (DescribeConfigsRequest::KEY, DESCRIBE_CONFIGS_VERSION),
    ] {
        let speaks = answer.api_keys.iter().any(|api| {
            api.api_key == key && (api.min_version..=api.max_version).contains(&version)
        });
        if !speaks {
            let reason = format!(
                "doesn't speak version {version} of Kafka's API {key}; Kafka 2.8 or newer is \
                 needed, or `sink = \"rdkafka\"`"
            );
            return Err(unavailable(&connection.address, reason));
        }
    }
    Ok(())
}

/// Who leads each partition; none if a partition is missing or there twice, because a key's partition is chosen by how many
/// there are.
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
    fn partitions_with_gaps_are_no_layout() {
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
