//! Detects that records are not delivered, and gives up all of them together.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use rdkafka::producer::{Producer as _, PurgeConfig, ThreadedProducer};
use tokio::time::Instant;

use super::{
    delivery::DeliveryReports,
    queue::{Queue, RateLimiter},
};
use crate::kafka::{Acknowledgements, SinkError};

/// The resolution of the age of records in flight and of the queue's limit.
const AGE_INTERVAL: Duration = Duration::from_millis(50);

/// Purges all records when one fails, or when the oldest in flight becomes too old. librdkafka itself expires records one by
/// one and would send younger records after the gap. Also adapts the limit of the queue.
pub(super) struct Watchdog {
    pub(super) producer: Weak<ThreadedProducer<DeliveryReports>>,
    pub(super) acknowledgements: Acknowledgements,
    pub(super) queue: Arc<Queue>,
    pub(super) delivery_timeout: Duration,
}

impl Watchdog {
    pub(super) async fn run(self) {
        let failing = wait_for_failure(&self.acknowledgements, &self.queue, self.delivery_timeout);
        failing.await;
        if let Some(producer) = self.producer.upgrade() {
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

/// Waits until the sink fails. Fails it if the oldest record in flight becomes too old.
async fn wait_for_failure(
    acknowledgements: &Acknowledgements,
    queue: &Queue,
    delivery_timeout: Duration,
) {
    // Before librdkafka expires single records.
    let limit = delivery_timeout * 3 / 4;
    let mut rate = RateLimiter::new(delivery_timeout);
    // The number of records sent, by time.
    let mut sent: VecDeque<(u64, Instant)> = VecDeque::new();
    loop {
        tokio::select! {
            _ = acknowledgements.failed() => return,
            () = tokio::time::sleep(AGE_INTERVAL) => {}
        }
        let (count, now) = (acknowledgements.sent(), Instant::now());
        rate.adapt(queue, now);
        if sent.back().is_none_or(|(known, _)| *known < count) {
            sent.push_back((count, now));
        }
        let acknowledged = acknowledgements.acknowledged();
        while sent
            .front()
            .is_some_and(|(count, _)| *count <= acknowledged)
        {
            sent.pop_front();
        }
        if sent.front().is_some_and(|(_, at)| now - *at > limit) {
            let reason = format!("no acknowledgement within {} s", limit.as_secs_f64());
            acknowledgements.fail(SinkError::Unavailable(reason));
            return;
        }
    }
}
