//! Reads batches of records.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use rdkafka::{Message as _, error::KafkaError, message::BorrowedMessage};

use crate::{Projection, decoded::DecodedBatch, topic::TopicConsumer};

/// Maximum records of a batch; more than in the live consumer, because nothing waits for the row locks.
const MAX_BATCH_RECORDS: usize = 10_000;
/// Payload bytes that end a batch; the last record may exceed it.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// About 0.1 to 0.2 ms of work.
const RECORDS_BETWEEN_YIELDS: usize = 50;

/// A batch of records.
pub(super) struct Batch<'a, C> {
    pub(super) messages: Vec<BorrowedMessage<'a>>,
    /// The decoded messages.
    pub(super) decoded: DecodedBatch<C>,
    /// The partitions whose end was reached after these messages.
    pub(super) at_end: BTreeSet<i32>,
}

impl<C> Batch<'_, C> {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.at_end.is_empty()
    }
}

/// Reads the available records up to the limits, and waits for the first one at most `timeout`. Yields
/// regularly, so that the previous batch is applied at the same time.
pub(super) async fn read_batch<'a, P: Projection>(
    consumer: &'a TopicConsumer,
    projection: &P,
    mut timeout: Duration,
) -> Result<Batch<'a, P::Change>> {
    let mut batch = Batch {
        messages: Vec::new(),
        decoded: DecodedBatch::default(),
        at_end: BTreeSet::new(),
    };
    let mut bytes = 0;
    while batch.messages.len() < MAX_BATCH_RECORDS && bytes < MAX_BATCH_BYTES {
        let Some(message) = consumer.poll(timeout) else {
            break;
        };
        timeout = Duration::ZERO;
        let message = match message {
            Err(KafkaError::PartitionEOF(partition)) => {
                batch.at_end.insert(partition);
                continue;
            }
            message => message.context("failed to read from Kafka")?,
        };
        let index = batch.messages.len();
        batch.decoded.push(projection, index, &message);
        batch.at_end.remove(&message.partition());
        bytes += message.payload_len();
        batch.messages.push(message);
        if batch.messages.len().is_multiple_of(RECORDS_BETWEEN_YIELDS) {
            tokio::task::yield_now().await;
        }
    }
    Ok(batch)
}
