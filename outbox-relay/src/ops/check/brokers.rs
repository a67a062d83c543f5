//! Checks the brokers and topics.

use std::collections::BTreeMap;

use cli::is_topic_name;

use super::{Finding, Findings, Level, database::Outbox};
use crate::{
    config::{KafkaConfig, OnRejection, SinkKind, SourceConfig},
    hints,
    kafka::{Inspector, MAX_BATCH_BYTES, Permission, SinkError, TopicFacts},
};

/// The approximate size of the relay's headers and of the batch around a record.
const RECORD_OVERHEAD_BYTES: usize = 400;
/// The most topics that are checked for a source.
const MAX_TOPICS: usize = 100;

/// Checks what the sources need of the cluster.
pub(super) async fn check_brokers(
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
            "the brokers were not checked: only librdkafka supports the login of kafka.properties",
            "Start the relay and check its log for errors of the brokers.",
        );
        return;
    }
    let mut inspector = match Inspector::connect(kafka).await {
        Ok(inspector) => inspector,
        Err(err) => {
            found.fail(err.to_string(), hint_for(&err));
            for (source, _) in outboxes {
                let mut found = Findings {
                    subject: &source.name,
                    all,
                };
                found.unknown(
                    "the topics of this source were not checked",
                    "Fix the connection to Kafka first.",
                );
            }
            return;
        }
    };
    found.pass(match inspector.brokers() {
        1 => format!("1 broker, connected to {}", kafka.brokers),
        brokers => format!("{brokers} brokers, connected to {}", kafka.brokers),
    });
    for (source, outbox) in outboxes {
        let mut found = Findings {
            subject: &source.name,
            all,
        };
        if let Err(err) =
            check_source(&mut inspector, kafka, source, outbox.as_ref(), &mut found).await
        {
            found.fail(err.to_string(), hint_for(&err));
            return;
        }
    }
}

fn hint_for(err: &SinkError) -> &'static str {
    match err {
        SinkError::Unauthenticated(_) => hints::CREDENTIALS,
        _ => hints::NOT_KAFKA,
    }
}

async fn check_source(
    inspector: &mut Inspector,
    kafka: &KafkaConfig,
    source: &SourceConfig,
    outbox: Option<&Outbox>,
    found: &mut Findings<'_>,
) -> Result<(), SinkError> {
    let mut topics: BTreeMap<&str, usize> = BTreeMap::new();
    if let Some(outbox) = outbox {
        if kafka.sink == SinkKind::Kafka {
            check_transactional_id(inspector, &outbox.producer_name, found).await?;
        }
        if outbox.topics.is_empty() {
            found.unknown(
                "no topic was checked: the outbox has no rows with a seq",
                "Run `outbox-relay check` again when it has rows.",
            );
        }
        let named = outbox.topics.iter().take(MAX_TOPICS);
        topics.extend(named.map(|(topic, bytes)| (topic.as_str(), *bytes)));
    } else {
        found.unknown(
            "the topics of the outbox were not checked",
            "Fix the failures of the database first.",
        );
    }
    if let Some(topic) = &source.dead_letter_topic {
        topics.entry(topic).or_default();
    }
    for (topic, bytes) in topics {
        check_topic(inspector, kafka, source, topic, bytes, found).await?;
    }
    Ok(())
}

async fn check_transactional_id(
    inspector: &mut Inspector,
    name: &str,
    found: &mut Findings<'_>,
) -> Result<(), SinkError> {
    match inspector.transactional_id_permission(name).await? {
        Permission::Granted => found.pass(format!("transactional id {name} is allowed")),
        Permission::Denied => found.fail(
            format!(
                "transactional id {name} is not allowed, so that a former leader is not fenced"
            ),
            "Allow Write on transactional ids with the prefix `outbox-relay.`",
        ),
        Permission::Unknown(reason) => found.unknown(
            format!("could not check transactional id {name}: the broker returned {reason}"),
            "Run `outbox-relay check` again in a moment.",
        ),
    }
    Ok(())
}

async fn check_topic(
    inspector: &mut Inspector,
    kafka: &KafkaConfig,
    source: &SourceConfig,
    topic: &str,
    row_bytes: usize,
    found: &mut Findings<'_>,
) -> Result<(), SinkError> {
    if !is_topic_name(topic) {
        found.fail(
            format!("{topic:?} is not a valid topic name"),
            "Use 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`.",
        );
        return Ok(());
    }
    let facts = match inspector.describe_topic(topic).await {
        Ok(Some(facts)) => facts,
        Ok(None) => {
            found.fail(
                format!("topic {topic} does not exist"),
                "Create it with the intended number of partitions and cleanup.policy.",
            );
            return Ok(());
        }
        Err(SinkError::Rejected { .. }) => {
            found.fail(
                format!("Describe on topic {topic} is not allowed"),
                "Allow Describe and Write on it.",
            );
            return Ok(());
        }
        Err(err) => return Err(err),
    };
    check_topic_facts(kafka, source, topic, row_bytes, &facts, found);
    Ok(())
}

fn check_topic_facts(
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
            format!("Write on topic {topic} is not allowed"),
            "Allow Write on it.",
        ),
        Permission::Unknown(reason) => found.unknown(
            format!("could not check that Write on topic {topic} is allowed: {reason}"),
            "Ensure that the relay has Write on it.",
        ),
    }
    if facts.leaderless > 0 {
        found.fail(
            format!(
                "{} of {} partitions of topic {topic} have no leader",
                facts.leaderless, facts.partitions
            ),
            "Start the brokers of these partitions.",
        );
    }
    check_record_size(kafka, source, topic, row_bytes, facts, found);
    let batch_bytes = kafka.max_record_bytes.min(MAX_BATCH_BYTES);
    if let (SinkKind::RdKafka, Some(limit)) = (kafka.sink, facts.max_message_bytes)
        && limit < batch_bytes
    {
        found.fail(
            format!(
                "librdkafka sends batches of up to {batch_bytes} bytes, but topic {topic} accepts only {limit}"
            ),
            format!("Set kafka.max_record_bytes to {limit}, or use the sink kafka."),
        );
    }
    match (&facts.cleanup_policy, facts.max_message_bytes) {
        (Some(policy), Some(bytes)) => found.pass(format!(
            "topic {topic}: {} partitions, cleanup.policy {policy}, max.message.bytes {bytes}",
            facts.partitions,
        )),
        _ => found.unknown(
            format!(
                "could not read cleanup.policy and max.message.bytes of topic {topic} with {} partitions",
                facts.partitions
            ),
            "Allow DescribeConfigs on it.",
        ),
    }
}

/// Checks that the largest sampled row fits.
fn check_record_size(
    kafka: &KafkaConfig,
    source: &SourceConfig,
    topic: &str,
    row_bytes: usize,
    facts: &TopicFacts,
    found: &mut Findings<'_>,
) {
    let bytes = row_bytes + RECORD_OVERHEAD_BYTES;
    let configured = Some(kafka.max_record_bytes);
    let limits = [
        ("max.message.bytes", facts.max_message_bytes),
        ("kafka.max_record_bytes", configured),
    ];
    let exceeded: Vec<String> = limits
        .into_iter()
        .filter_map(|(setting, limit)| Some((setting, limit?)))
        .filter(|(_, limit)| row_bytes > 0 && *limit < bytes)
        .map(|(setting, limit)| format!("{setting} ({limit})"))
        .collect();
    if exceeded.is_empty() {
        return;
    }
    let level = match source.on_rejection {
        OnRejection::Halt => Level::Fail,
        // The policy handles such a row.
        OnRejection::ParkKey | OnRejection::DeadLetter => Level::Note,
    };
    let what = format!("a row for topic {topic} makes a record of about {bytes} bytes");
    found.add(
        level,
        what,
        Some(format!("Raise {}.", exceeded.join(" and "))),
    );
}
