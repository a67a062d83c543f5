//! Requests other than Produce: topics, their limits, and producer ids.

mod inspect;

use std::{collections::HashMap, fmt::Display, time::Duration};

use backon::{BackoffBuilder as _, ConstantBuilder};
use kafka_client::{Options, Throttled, TopicMetadata, dial};
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        DescribeConfigsRequest, FindCoordinatorRequest, InitProducerIdRequest,
        InitProducerIdResponse, TransactionalId, describe_configs_request::DescribeConfigsResource,
    },
    protocol::{Request, StrBytes},
};
use tokio::time::Instant;

pub(crate) use self::inspect::{Inspector, Permission, TopicFacts};

use super::{
    client::{
        DESCRIBE_CONFIGS_VERSION, FIND_COORDINATOR_VERSION, INIT_PRODUCER_ID_VERSION, options,
    },
    record_batch::Producer,
    unavailable,
};
use crate::{config::KafkaConfig, kafka::SinkError};

const COORDINATOR_OF_TRANSACTIONS: i8 = 1;
const RESOURCE_TOPIC: i8 = 2;
/// The limit on waiting for a transaction coordinator, which loads its state after a broker's start.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(15);
/// The minimum pause between attempts; jitter at most doubles it.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Irrelevant because no transaction is started, but brokers require a valid value.
const TRANSACTION_TIMEOUT_MS: i32 = 60_000;

/// A client of a cluster.
pub(super) struct Cluster(kafka_client::Cluster);

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
        let cluster = kafka_client::Cluster::connect(&kafka.brokers, options(kafka));
        Ok(Self(cluster.await?))
    }

    pub(super) fn options(&self) -> &Options {
        self.0.options()
    }

    /// Returns the address of a broker from the last metadata.
    pub(super) fn address(&self, broker: i32) -> Result<&str, SinkError> {
        Ok(self.0.address(broker)?)
    }

    /// Describes topics. Missing ones are left out of the result.
    pub(super) async fn topics(
        &mut self,
        names: &[&str],
    ) -> Result<HashMap<String, TopicMetadata>, SinkError> {
        Ok(self.0.topics(names).await?)
    }

    fn malformed(&self, what: &str) -> SinkError {
        self.unavailable(format!("malformed response: {what}"))
    }

    fn unavailable(&self, reason: impl Display) -> SinkError {
        unavailable(self.0.connected_to(), reason)
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
            // Write on any topic suffices since Kafka 3.0 (KIP-679).
            Some(err @ ResponseError::ClusterAuthorizationFailed) => {
                let reason =
                    format!("{err}; allow Write on the topics and on the transactional id");
                Err(self.unavailable(reason))
            }
            Some(err) => Err(self.unavailable(err)),
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
                Ok(Err(err)) => return Err(self.unavailable(err)),
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
                let mut coordinator = dial(&address, self.options()).await?;
                let request = init_producer_id(Some(name), current);
                let (version, timeout) = (INIT_PRODUCER_ID_VERSION, self.options().timeout);
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
            _ => Err(self.unavailable(error)),
        }
    }

    async fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<R::Response, SinkError>
    where
        R::Response: Throttled,
    {
        Ok(self.0.call(request, version).await?)
    }
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
