use kafka_protocol::error::ResponseError;

/// A failure of a request or a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A later attempt may succeed: the broker is unreachable, slow, or not the leader. Contains its address and the cause.
    #[error("{0}")]
    Unavailable(String),
    /// A broker does not accept the credentials, or there are none to send. Contains the cause and a hint.
    #[error("{0}")]
    Unauthenticated(String),
    /// The topic does not exist.
    #[error("topic {0} does not exist")]
    UnknownTopic(String),
    /// The topic has no partition with this number.
    #[error("topic {topic} has no partition {partition}")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
    },
    /// The cluster's ACLs do not allow this client to describe the topic, which may or may not exist.
    #[error("topic {0}: {error}", error = ResponseError::TopicAuthorizationFailed)]
    TopicDenied(String),
    /// No topic can have this name.
    #[error("topic {0:?}: {error}", error = ResponseError::InvalidTopicException)]
    InvalidTopic(String),
}
