//! Reads the records that are applied together.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use rdkafka::{Message as _, error::KafkaError, message::BorrowedMessage};

use crate::{Projection, decoded::Decoded, topic::TopicConsumer};

/// Records of a transaction at most: more than while serving, because nobody waits for the lock.
const MAX_BATCH_RECORDS: usize = 10_000;
/// Bytes of their payloads, but for the last.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// A tenth of a millisecond or two.
const RECORDS_BETWEEN_YIELDS: usize = 50;

/// What was read together.
pub(super) struct Batch<'a, C> {
    pub(super) messages: Vec<BorrowedMessage<'a>>,
    /// What the messages come to.
    pub(super) decoded: Decoded<C>,
    /// Partitions of which there was nothing behind these.
    pub(super) read_out: BTreeSet<i32>,
}

impl<C> Batch<'_, C> {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.read_out.is_empty()
    }
}

/// Reads what is there, up to the bounds; waits for the first so long at most. It yields now and then,
/// so that a batch is applied meanwhile.
pub(super) async fn read_batch<'a, P: Projection>(
    consumer: &'a TopicConsumer,
    projection: &P,
    mut timeout: Duration,
) -> Result<Batch<'a, P::Change>> {
    let mut batch = Batch {
        messages: Vec::new(),
        decoded: Decoded::default(),
        read_out: BTreeSet::new(),
    };
    let mut bytes = 0;
    while batch.messages.len() < MAX_BATCH_RECORDS && bytes < MAX_BATCH_BYTES {
        let Some(message) = consumer.poll(timeout) else {
            break;
        };
        timeout = Duration::ZERO;
        let message = match message {
            Err(KafkaError::PartitionEOF(partition)) => {
                batch.read_out.insert(partition);
                continue;
            }
            message => message.context("Kafka can't be read")?,
        };
        let index = batch.messages.len();
        batch.decoded.push(projection, index, &message);
        batch.read_out.remove(&message.partition());
        bytes += message.payload_len();
        batch.messages.push(message);
        if batch.messages.len().is_multiple_of(RECORDS_BETWEEN_YIELDS) {
            tokio::task::yield_now().await;
        }
    }
    Ok(batch)
}
