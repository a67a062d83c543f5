//! What is found in Kafka.

use std::collections::BTreeMap;

use cli::is_topic_name;

use super::{Finding, Findings, Level, database::Outbox};
use crate::{
    config::{KafkaConfig, OnRejection, SinkKind, SourceConfig},
    hints,
    kafka::{Inspector, MAX_BATCH_BYTES, Permission, SinkError, TopicFacts},
};

/// What the record's own headers and the batch around it take beside the row, about.
const RECORD_OVERHEAD_BYTES: usize = 400;
/// Topics that are looked at, of a source.
const MAX_TOPICS: usize = 100;

/// Looks at what the sources need of the cluster.
pub(super) async fn check(
    kafka: &KafkaConfig,
    outboxes: &[(&SourceConfig, Option<Outbox>)],
    all: &mut Vec<Finding>,
) {
    let mut found = Findings {
        subject: "kafka",
        all,
    };
    if kafka.properties.has_login() {
        found.unknown(
            "the brokers were not asked: only librdkafka knows the login of kafka.properties",
            "start the relay; its log says what the brokers reject",
        );
        return;
    }
    let mut inspector = match Inspector::connect(kafka).await {
        Ok(inspector) => inspector,
        Err(err) => {
            found.fail(err.to_string(), hints::NOT_KAFKA);
            for (source, _) in outboxes {
                let mut found = Findings {
                    subject: &source.name,
                    all,
                };
                found.unknown(
                    "its topics were not looked at",
                    "mend what keeps the relay from Kafka",
                );
            }
            return;
        }
    };
    found.pass(match inspector.brokers() {
        1 => format!("1 broker, through {}", kafka.brokers),
        brokers => format!("{brokers} brokers, through {}", kafka.brokers),
    });
    for (source, outbox) in outboxes {
        let mut found = Findings {
            subject: &source.name,
            all,
        };
        if let Err(err) = look(&mut inspector, kafka, source, outbox.as_ref(), &mut found).await {
            found.fail(err.to_string(), hints::NOT_KAFKA);
            return;
        }
    }
}

async fn look(
    inspector: &mut Inspector,
    kafka: &KafkaConfig,
    source: &SourceConfig,
    outbox: Option<&Outbox>,
    found: &mut Findings<'_>,
) -> Result<(), SinkError> {
    let mut topics: BTreeMap<&str, usize> = BTreeMap::new();
    if let Some(outbox) = outbox {
        if kafka.sink == SinkKind::Kafka {
            look_at_name(inspector, &outbox.producer_name, found).await?;
        }
        if outbox.topics.is_empty() {
            found.unknown(
                "no topic was looked for, because the outbox has no rows with a seq",
                "check again when it has some",
            );
        }
        let named = outbox.topics.iter().take(MAX_TOPICS);
        topics.extend(named.map(|(topic, bytes)| (topic.as_str(), *bytes)));
    } else {
        found.unknown(
            "the topics of its rows were not looked at",
            "mend what keeps the relay from the outbox",
        );
    }
    if let Some(topic) = &source.dead_letter_topic {
        topics.entry(topic).or_default();
    }
    for (topic, bytes) in topics {
        look_at_topic(inspector, kafka, source, topic, bytes, found).await?;
    }
    Ok(())
}

async fn look_at_name(
    inspector: &mut Inspector,
    name: &str,
    found: &mut Findings<'_>,
) -> Result<(), SinkError> {
    match inspector.may_use_name(name).await? {
        Permission::Granted => found.pass(format!("transactional id {name} may be used")),
        Permission::Denied => found.fail(
            format!("transactional id {name} is not allowed: a relay of the past isn't fenced off"),
            "allow Write on transactional ids with the prefix outbox-relay.",
        ),
        Permission::Unknown(reason) => found.unknown(
            format!("could not check the transactional id {name}: the broker answers {reason}"),
            "check again in a moment",
        ),
    }
    Ok(())
}

async fn look_at_topic(
    inspector: &mut Inspector,
    kafka: &KafkaConfig,
    source: &SourceConfig,
    topic: &str,
    row_bytes: usize,
    found: &mut Findings<'_>,
) -> Result<(), SinkError> {
    if !is_topic_name(topic) {
        found.fail(
            format!("no topic can be named {topic:?}"),
            "use 1 to 249 of a-z, A-Z, 0-9, ., _, -",
        );
        return Ok(());
    }
    let facts = match inspector.topic(topic).await {
        Ok(Some(facts)) => facts,
        Ok(None) => {
            found.fail(
                format!("there is no topic {topic}"),
                "create it, with its partitions and its cleanup.policy on purpose",
            );
            return Ok(());
        }
        Err(SinkError::Rejected { .. }) => {
            found.fail(
                format!("topic {topic} is hidden from the relay"),
                "allow Describe and Write on it",
            );
            return Ok(());
        }
        Err(err) => return Err(err),
    };
    judge(kafka, source, topic, row_bytes, &facts, found);
    Ok(())
}

fn judge(
    kafka: &KafkaConfig,
    source: &SourceConfig,
    topic: &str,
    row_bytes: usize,
    facts: &TopicFacts,
    found: &mut Findings<'_>,
) {
    match &facts.may_write {
        Permission::Granted => {}
        Permission::Denied => found.fail(
            format!("topic {topic} may not be written to"),
            "allow Write on it",
        ),
        Permission::Unknown(reason) => found.unknown(
            format!("could not check whether topic {topic} may be written to: {reason}"),
            "see that the relay is allowed Write on it",
        ),
    }
    if facts.leaderless > 0 {
        found.fail(
            format!(
                "{} of {} partitions of topic {topic} have no leader",
                facts.leaderless, facts.partitions
            ),
            "start their brokers",
        );
    }
    judge_size(kafka, source, topic, row_bytes, facts, found);
    let batch_bytes = kafka.max_record_bytes.min(MAX_BATCH_BYTES);
    if let (SinkKind::RdKafka, Some(limit)) = (kafka.sink, facts.max_message_bytes)
        && limit < batch_bytes
    {
        found.fail(
            format!(
                "librdkafka fills batches up to {batch_bytes} bytes, and topic {topic} takes {limit} at once"
            ),
            format!("set kafka.max_record_bytes to {limit}, or use the sink kafka"),
        );
    }
    match (&facts.cleanup_policy, facts.max_message_bytes) {
        (Some(policy), Some(bytes)) => found.pass(format!(
            "topic {topic}: {} partitions, cleanup.policy {policy}, max.message.bytes {bytes}",
            facts.partitions,
        )),
        _ => found.unknown(
            format!(
                "could not read cleanup.policy and max.message.bytes of topic {topic}, which has {} partitions",
                facts.partitions
            ),
            "allow DescribeConfigs on it",
        ),
    }
}

/// Whether the largest row that was found fits.
fn judge_size(
    kafka: &KafkaConfig,
    source: &SourceConfig,
    topic: &str,
    row_bytes: usize,
    facts: &TopicFacts,
    found: &mut Findings<'_>,
) {
    let bytes = row_bytes + RECORD_OVERHEAD_BYTES;
    let own = Some(kafka.max_record_bytes);
    let limits = [
        ("max.message.bytes", facts.max_message_bytes),
        ("kafka.max_record_bytes", own),
    ];
    let low: Vec<String> = limits
        .into_iter()
        .filter_map(|(setting, limit)| Some((setting, limit?)))
        .filter(|(_, limit)| row_bytes > 0 && *limit < bytes)
        .map(|(setting, limit)| format!("{setting}, which is {limit}"))
        .collect();
    if low.is_empty() {
        return;
    }
    let level = match source.on_rejection {
        OnRejection::Halt => Level::Fail,
        // That is what becomes of it.
        OnRejection::ParkKey | OnRejection::DeadLetter => Level::Note,
    };
    let what = format!("a row for topic {topic} makes a record of about {bytes} bytes");
    found.add(level, what, Some(format!("raise {}", low.join(", and "))));
}
