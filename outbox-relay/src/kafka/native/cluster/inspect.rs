//! Read-only inspection of a cluster, for `outbox-relay check`.

use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        DescribeConfigsRequest, MetadataRequest, TopicName,
        describe_configs_request::DescribeConfigsResource, metadata_request::MetadataRequestTopic,
    },
    protocol::StrBytes,
};

use super::{Cluster, RESOURCE_TOPIC, init_producer_id, owned};
use crate::{
    config::KafkaConfig,
    kafka::{
        SinkError,
        native::client::{DESCRIBE_CONFIGS_VERSION, INIT_PRODUCER_ID_VERSION, METADATA_VERSION},
    },
};

/// The bit of the ACL operation Write in `topic_authorized_operations` (KIP-430).
const WRITE_BIT: i32 = 1 << 4;

/// The value of `topic_authorized_operations` if the broker does not report it.
const OPERATIONS_UNKNOWN: i32 = i32::MIN;

/// The permission of this client for an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    Granted,
    Denied,
    /// The broker did not report it, for this reason.
    Unknown(String),
}

/// A read-only client.
pub(crate) struct Inspector(Cluster);

/// The properties of a topic.
#[derive(Debug)]
pub(crate) struct TopicFacts {
    pub(crate) partitions: usize,
    /// The number of partitions without a leader.
    pub(crate) leaderless: usize,
    pub(crate) may_write: Permission,
    /// `None` if this client may not describe the configuration.
    pub(crate) max_message_bytes: Option<usize>,
    /// `None` if this client may not describe the configuration.
    pub(crate) cleanup_policy: Option<String>,
}

impl Inspector {
    /// Connects to the first broker that responds.
    ///
    /// # Errors
    /// If no broker responds.
    pub(crate) async fn connect(kafka: &KafkaConfig) -> Result<Self, SinkError> {
        let cluster = Cluster::connect(kafka).await?;
        Ok(Self(cluster))
    }

    /// The number of brokers.
    pub(crate) fn brokers(&self) -> usize {
        self.0.0.broker_count()
    }

    /// Describes a topic, or returns `None` if it does not exist.
    ///
    /// # Errors
    /// If the broker does not respond, or this client may not describe the topic.
    pub(crate) async fn describe_topic(
        &mut self,
        name: &str,
    ) -> Result<Option<TopicFacts>, SinkError> {
        let topic = MetadataRequestTopic::default().with_name(Some(TopicName(owned(name))));
        let request = MetadataRequest::default()
            .with_topics(Some(vec![topic]))
            .with_allow_auto_topic_creation(false)
            .with_include_topic_authorized_operations(true);
        let response = self.0.call(&request, METADATA_VERSION).await?;
        let is_requested = |found: &TopicName| found.as_str() == name;
        let topic = (response.topics.into_iter())
            .find(|topic| topic.name.as_ref().is_some_and(is_requested))
            .ok_or_else(|| self.0.malformed(&format!("no metadata of topic {name}")))?;
        match topic.error_code.err() {
            None => {}
            Some(ResponseError::UnknownTopicOrPartition) => return Ok(None),
            Some(err @ ResponseError::TopicAuthorizationFailed) => {
                return Err(SinkError::rejected(name, err));
            }
            Some(err) => return Err(self.0.unavailable(err)),
        }
        let leaderless = topic.partitions.iter().filter(|p| p.leader_id.0 < 0);
        let [max_message_bytes, cleanup_policy] = self
            .topic_configs(name, ["max.message.bytes", "cleanup.policy"])
            .await?;
        Ok(Some(TopicFacts {
            partitions: topic.partitions.len(),
            leaderless: leaderless.count(),
            may_write: match topic.topic_authorized_operations {
                OPERATIONS_UNKNOWN => {
                    Permission::Unknown("the broker does not report it".to_owned())
                }
                operations if operations & WRITE_BIT != 0 => Permission::Granted,
                _ => Permission::Denied,
            },
            max_message_bytes: max_message_bytes.and_then(|bytes| bytes.parse().ok()),
            cleanup_policy,
        }))
    }

    /// Returns configuration values of a topic; all are `None` if this client may not describe the configuration.
    async fn topic_configs<const N: usize>(
        &mut self,
        topic: &str,
        names: [&'static str; N],
    ) -> Result<[Option<String>; N], SinkError> {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(owned(topic))
            .with_configuration_keys(Some(names.map(StrBytes::from_static_str).into()));
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let response = self.0.call(&request, DESCRIBE_CONFIGS_VERSION).await?;
        let configs: Vec<_> = response
            .results
            .into_iter()
            .flat_map(|r| r.configs)
            .collect();
        Ok(names.map(|name| {
            let config = configs.iter().find(|config| &*config.name == name)?;
            config.value.as_ref().map(ToString::to_string)
        }))
    }

    /// Returns whether this client may use the transactional id.
    ///
    /// # Errors
    /// If the broker does not respond.
    pub(crate) async fn transactional_id_permission(
        &mut self,
        name: &str,
    ) -> Result<Permission, SinkError> {
        // Brokers check the ACLs first and the timeout second. The invalid timeout makes them stop there, so the current
        // producer is not fenced.
        let request = init_producer_id(Some(name), None).with_transaction_timeout_ms(0);
        let response = self.0.call(&request, INIT_PRODUCER_ID_VERSION).await?;
        Ok(match response.error_code.err() {
            Some(ResponseError::InvalidTransactionTimeout) => Permission::Granted,
            Some(ResponseError::TransactionalIdAuthorizationFailed) => Permission::Denied,
            Some(err) => Permission::Unknown(err.to_string()),
            None => Permission::Unknown("no error for an invalid timeout".to_owned()),
        })
    }
}
