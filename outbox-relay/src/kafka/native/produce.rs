//! Produce requests, pipelined on one connection; responses arrive in request order.
//!
//! - `responses` reads them and reports acknowledgements and failures.
//! - `silence` tells a slow broker from a lost one.

mod responses;
mod silence;

use std::{io::IoSlice, sync::Arc, time::Duration};

use kafka_client::{Connection, Options, Writer, dial, is_stale};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::Instant,
};

use self::{
    responses::ResponseReader,
    silence::{Progress, SilenceMonitor},
};
use super::{
    produce_request::{PartitionBatch, ProduceRequestFrame},
    unavailable,
};
use crate::{
    config::KafkaConfig,
    kafka::{Acknowledgements, SinkError},
    postgres::lease::Lease,
};

/// The limit on requests in flight per connection. Brokers detect duplicates only among the last five batches of a producer
/// (KIP-98), the reason for `max.in.flight.requests.per.connection=5` in Kafka's own client.
const MAX_REQUESTS: u32 = 5;

/// A connection to one broker, used only for Produce requests.
pub(super) struct ProduceConnection {
    writer: Writer,
    address: String,
    delivery_timeout: Duration,
    progress: Progress,
    last_correlation_id: i32,
    /// A permit per request in flight.
    slots: Arc<Semaphore>,
    acknowledgements: Acknowledgements,
    sent_requests: mpsc::UnboundedSender<SentRequest>,
    stale_at: Option<Instant>,
    reader_task: JoinHandle<()>,
}

/// A request in flight.
#[derive(Debug)]
struct SentRequest {
    correlation_id: i32,
    batches: Vec<SentBatch>,
    sent_at: Instant,
    _slot: OwnedSemaphorePermit,
}

/// A batch of a request.
#[derive(Debug)]
struct SentBatch {
    topic: Arc<str>,
    partition: i32,
    /// The number of its first record.
    first: u64,
}

impl ProduceConnection {
    /// Connects to a broker. Acknowledgements and failures are reported to `acknowledgements`.
    pub(super) async fn open(
        broker: i32,
        address: &str,
        kafka: &KafkaConfig,
        options: &Options,
        acknowledgements: Acknowledgements,
    ) -> Result<Self, SinkError> {
        let Connection {
            reader,
            writer,
            stale_at,
            ..
        } = dial(address, options).await?;
        // Bounded by `slots`.
        let (sent_requests, sent) = mpsc::unbounded_channel();
        let progress = Progress::default();
        let responses = ResponseReader {
            silence: SilenceMonitor::new(broker, address, kafka, options, &progress),
            reader,
            sent,
            acknowledgements: acknowledgements.clone(),
            address: address.to_owned(),
            options: options.clone(),
        };
        Ok(Self {
            acknowledgements,
            writer,
            address: address.to_owned(),
            delivery_timeout: kafka.delivery_timeout,
            progress,
            last_correlation_id: 0,
            slots: Arc::new(Semaphore::new(MAX_REQUESTS as usize)),
            sent_requests,
            stale_at,
            reader_task: tokio::spawn(responses.run()),
        })
    }

    /// Returns whether the broker closed the connection while it was idle.
    pub(super) fn is_closed(&self) -> bool {
        self.sent_requests.is_closed()
    }

    /// Returns whether the connection must be replaced before its SASL session expires.
    pub(super) fn is_stale(&self) -> bool {
        is_stale(self.stale_at)
    }

    /// Waits for the responses to all requests in flight, so that requests on another connection cannot overtake them.
    pub(super) async fn drain(&self) -> Result<(), SinkError> {
        drop(self.acquire_slots(MAX_REQUESTS).await?);
        self.acknowledgements.ensure_usable()
    }

    async fn acquire_slots(&self, count: u32) -> Result<OwnedSemaphorePermit, SinkError> {
        // Limited by the wait for responses: when that ends, all slots are released.
        let slots = Arc::clone(&self.slots).acquire_many_owned(count).await;
        slots.map_err(|err| unavailable(&self.address, err))
    }

    /// Sends a request; waits while the limit on requests in flight is reached.
    ///
    /// The batches are written to the socket without a copy. They are not needed afterwards: unacknowledged rows are read
    /// from the outbox again.
    pub(super) async fn send(
        &mut self,
        batches: &[PartitionBatch<'_>],
        in_flight: InFlight,
        lease: &Lease,
    ) -> Result<(), SinkError> {
        let slot = self.acquire_slots(in_flight as u32).await?;
        let acknowledgements = &self.acknowledgements;
        tokio::select! {
            () = self.progress.wait_while_throttled() => {}
            err = acknowledgements.failed() => return Err(err),
        }
        // The last wait before the write: a successor relies on how long the write may take.
        lease.wait_until_valid().await;
        // A failure releases slots, too.
        acknowledgements.ensure_usable()?;
        self.last_correlation_id = self.last_correlation_id.wrapping_add(1);
        let timeout_ms = i32::try_from(self.delivery_timeout.as_millis()).unwrap_or(i32::MAX);
        let frame = ProduceRequestFrame::new(batches, self.last_correlation_id, timeout_ms);
        let request = SentRequest {
            correlation_id: self.last_correlation_id,
            batches: batches.iter().map(SentBatch::of).collect(),
            sent_at: Instant::now(),
            _slot: slot,
        };
        // Before the write: the response may arrive before this task continues.
        let closed = |_| unavailable(&self.address, "connection closed");
        self.sent_requests.send(request).map_err(closed)?;
        let writing = write_all(&mut self.writer, frame.slices(batches), &self.progress);
        tokio::select! {
            biased;
            written = writing => written.map_err(|err| unavailable(&self.address, err)),
            // Limits the time of the write, for which the reader already waits.
            err = acknowledgements.failed() => Err(err),
        }
    }
}

/// The number of slots that a request takes.
#[derive(Clone, Copy)]
pub(super) enum InFlight {
    /// Other requests may be in flight at the same time.
    Pipelined = 1,
    /// No other request is in flight at the same time.
    Alone = MAX_REQUESTS as isize,
}

impl SentBatch {
    fn of(batch: &PartitionBatch<'_>) -> Self {
        Self {
            topic: Arc::clone(batch.topic),
            partition: batch.partition,
            first: batch.first,
        }
    }
}

impl Drop for ProduceConnection {
    fn drop(&mut self) {
        self.reader_task.abort();
    }
}

async fn write_all(
    writer: &mut Writer,
    mut slices: Vec<IoSlice<'_>>,
    progress: &Progress,
) -> std::io::Result<()> {
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = writer.write_vectored(rest).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        progress.record(Instant::now());
        IoSlice::advance_slices(&mut rest, written);
    }
    // TLS buffers what the socket did not accept.
    writer.flush().await
}
