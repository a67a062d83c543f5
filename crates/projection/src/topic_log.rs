//! Detects that a topic's log is not the one that was consumed: the topic was recreated, or records were lost in an
//! unclean leader election.
//!
//! A name and an offset do not identify a record. The id of the topic and the leader epoch do. librdkafka does not expose
//! them, so this uses a connection of its own.

use std::{fmt, time::Duration};

use kafka_client::{Cluster, Error, Hints, Options, Security, TokenHints, TopicMetadata};
use uuid::Uuid;

const TIMEOUT: Duration = Duration::from_secs(2);
const HINTS: Hints = Hints {
    add_tls: "KAFKA_BROKERS must name listeners without TLS",
    remove_tls: "KAFKA_BROKERS must name listeners without TLS",
    closed_early: "KAFKA_BROKERS must name listeners without TLS and SASL",
    remove_sasl: "KAFKA_BROKERS must name listeners without SASL",
    mechanism: "the SASL mechanism",
    credentials: "check the credentials",
    tokens: TokenHints {
        file: "check the token",
        client_credentials: "check the client's credentials",
        endpoint: "check the URL of the token endpoint",
        certificates: tls::Settings {
            ca: "the CA of the token endpoint",
            address: "the URL of the token endpoint",
            identity: "the client certificate",
        },
    },
    old_broker: "use Kafka 2.3 or later",
    certificates: tls::Settings {
        ca: "the CA",
        address: "KAFKA_BROKERS",
        identity: "the client certificate",
    },
};

/// The records before `offset` have leader epochs up to `leader_epoch`.
///
/// The leader confirmed it: its log of that epoch, or of earlier ones, reached to `offset`. The records that replace some of
/// them are written by a later leader, with a higher epoch. So they were replaced exactly if the log's end of
/// `leader_epoch` is now before `offset`, also when the log has grown beyond it again. The next offset itself would not do:
/// the records just before it can be of a later, clean epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) leader_epoch: i32,
    pub(crate) offset: i64,
}

/// What identifies the log of a stored offset. `None` is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogIdentity {
    pub(crate) topic_id: Option<Uuid>,
    pub(crate) epoch: Option<Epoch>,
}

/// The difference between a topic's log and the one that was consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogChange {
    Recreated {
        consumed: Uuid,
        current: Uuid,
    },
    /// The partition ends before the next offset.
    Shorter {
        partition: i32,
        next: i64,
        end: i64,
    },
    /// Records that were applied are lost: those from the first to before the second offset.
    Truncated {
        partition: i32,
        lost: (i64, i64),
    },
}

impl fmt::Display for LogChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recreated { consumed, current } => write!(
                f,
                "was recreated: its id is {current}, and the stored offsets belong to {consumed}"
            ),
            Self::Shorter {
                partition,
                next,
                end,
            } => write!(
                f,
                "was recreated or truncated: partition {partition} ends at offset {end}, before the next offset {next}"
            ),
            Self::Truncated {
                partition,
                lost: (first, end),
            } => write!(
                f,
                "was truncated by an unclean leader election: offsets {first} to {} of partition {partition} are lost",
                end - 1
            ),
        }
    }
}

/// A connection that describes the log of a topic.
pub(crate) struct TopicLog {
    brokers: String,
    topic: String,
    cluster: Option<Cluster>,
}

impl TopicLog {
    pub(crate) fn new(brokers: &str, topic: &str) -> Self {
        Self {
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            cluster: None,
        }
    }

    async fn connect(&mut self) -> Result<&mut Cluster, Error> {
        let cluster = match self.cluster.take() {
            Some(cluster) => cluster,
            None => {
                let options = Options {
                    client_id: "projection-topic-log",
                    security: Security::default(),
                    timeout: TIMEOUT,
                    required_versions: &[],
                    hints: &HINTS,
                };
                Cluster::connect(&self.brokers, options).await?
            }
        };
        Ok(self.cluster.insert(cluster))
    }

    async fn describe(&mut self) -> Result<TopicMetadata, Error> {
        let topic = self.topic.clone();
        self.connect().await?.topic(&topic).await
    }

    /// Returns the id of the topic; `None` before Kafka 2.8.
    pub(crate) async fn topic_id(&mut self) -> Result<Option<Uuid>, Error> {
        let topic = self.describe().await?;
        Ok(known(topic.topic_id))
    }

    /// Compares the log with the one that was consumed.
    pub(crate) async fn find_change(
        &mut self,
        partition: i32,
        consumed: LogIdentity,
    ) -> Result<Option<LogChange>, Error> {
        let current = self.topic_id().await?;
        if let (Some(consumed), Some(current)) = (consumed.topic_id, current)
            && consumed != current
        {
            return Ok(Some(LogChange::Recreated { consumed, current }));
        }
        let Some(epoch) = consumed.epoch else {
            return Ok(None);
        };
        let end = self.end_of_epoch(partition, epoch.leader_epoch).await?;
        Ok(end
            .filter(|end| *end < epoch.offset)
            .map(|end| LogChange::Truncated {
                partition,
                lost: (end, epoch.offset),
            }))
    }

    /// Returns the epoch of the records before `next`, or `None` if the leader does not confirm one. `next` was read
    /// before this call.
    pub(crate) async fn find_epoch(
        &mut self,
        partition: i32,
        next: i64,
    ) -> Result<Option<Epoch>, Error> {
        let topic = self.describe().await?;
        let index = usize::try_from(partition).ok();
        let metadata = index.and_then(|index| topic.partitions.get(index));
        let Some(leader_epoch) = metadata.map(|metadata| metadata.leader_epoch) else {
            return Ok(None);
        };
        if leader_epoch < 0 {
            return Ok(None);
        }
        // The metadata may be outdated, and the records just before `next` of a later epoch.
        let end = self.end_of_epoch(partition, leader_epoch).await?;
        Ok(end.filter(|end| *end >= next).map(|_| Epoch {
            leader_epoch,
            offset: next,
        }))
    }

    async fn end_of_epoch(
        &mut self,
        partition: i32,
        leader_epoch: i32,
    ) -> Result<Option<i64>, Error> {
        let topic = self.topic.clone();
        let cluster = self.connect().await?;
        let end = cluster
            .end_of_epoch(&topic, partition, leader_epoch)
            .await?;
        Ok(end.map(|end| end.end_offset))
    }
}

/// The advice for a topic whose log has changed.
pub(crate) const RESET_HINT: &str = "To apply the topic from its beginning, run this service's command `projection reset` and restart the service.";

fn known(id: Uuid) -> Option<Uuid> {
    (!id.is_nil()).then_some(id)
}
