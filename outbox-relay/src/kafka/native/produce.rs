//! Produce requests, pipelined on one connection; responses arrive in request order.

use std::{io::IoSlice, sync::Arc, time::Duration};

use bytes::Bytes;
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        ProduceRequest, ProduceResponse, ResponseHeader, produce_response::PartitionProduceResponse,
    },
    protocol::{Decodable as _, HeaderVersion as _, Request as _},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::Instant,
};

use kafka_client::{
    Connection, Options, Reader, Writer, dial, is_stale, read_frame, validate_response,
    with_timeout, with_timeout_since,
};

use super::{
    client::PRODUCE_VERSION,
    produce_request::{PartitionBatch, ProduceRequestFrame},
    unavailable,
};
use crate::{
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
    timeout: Duration,
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
    /// Connects. Acknowledgements and failures are reported to `acknowledgements`.
    pub(super) async fn open(
        address: &str,
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
        let responses = ResponseReader {
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
            timeout: options.timeout,
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
        let slots = Arc::clone(&self.slots).acquire_many_owned(count);
        let slots = with_timeout(self.timeout, &self.address, async {
            slots.await.map_err(std::io::Error::other)
        });
        Ok(slots.await?)
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
        // The last wait before the write: a successor relies on how long the write may take.
        lease.wait_until_valid().await;
        // A failure releases slots, too.
        self.acknowledgements.ensure_usable()?;
        self.last_correlation_id = self.last_correlation_id.wrapping_add(1);
        let timeout_ms = i32::try_from(self.timeout.as_millis()).unwrap_or(i32::MAX);
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
        let writing = write_all(&mut self.writer, frame.slices(batches));
        Ok(with_timeout(self.timeout, &self.address, writing).await?)
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

async fn write_all(writer: &mut Writer, mut slices: Vec<IoSlice<'_>>) -> std::io::Result<()> {
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = writer.write_vectored(rest).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    // TLS buffers what the socket did not accept.
    writer.flush().await
}

/// Reads the responses of one connection.
struct ResponseReader {
    reader: Reader,
    sent: mpsc::UnboundedReceiver<SentRequest>,
    acknowledgements: Acknowledgements,
    address: String,
    options: Options,
}

impl ResponseReader {
    /// Runs until an error, or until the sink is dropped.
    async fn run(mut self) {
        loop {
            let request = match self.next_request().await {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(err) => return self.acknowledgements.fail(err),
            };
            match self.read_response(&request).await {
                Ok(()) => {
                    let firsts = request.batches.iter().map(|batch| batch.first);
                    self.acknowledgements.acknowledge(firsts);
                }
                // Before the request's slot is released: the next sender must see the failure.
                Err(err) => return self.acknowledgements.fail(err),
            }
        }
    }

    async fn read_response(&mut self, request: &SentRequest) -> Result<(), SinkError> {
        let frame = read_frame(&mut self.reader, self.options.hints);
        let timeout = self.options.timeout;
        let frame = with_timeout_since(request.sent_at, timeout, &self.address, frame).await?;
        let response = decode(frame, request.correlation_id);
        let response = response.map_err(|reason| unavailable(&self.address, reason))?;
        if !covers_batches(&response, &request.batches) {
            let reason = "malformed response: its partitions differ from those of the request";
            return Err(unavailable(&self.address, reason));
        }
        for topic in &response.responses {
            for partition in &topic.partition_responses {
                if let Some(err) = partition.error_code.err() {
                    return Err(classify(err, &topic.name, partition, &self.address));
                }
            }
        }
        Ok(())
    }

    /// Returns the next request in flight, or `None` when the connection is no longer used.
    async fn next_request(&mut self) -> Result<Option<SentRequest>, SinkError> {
        let has_data = tokio::select! {
            biased;
            request = self.sent.recv() => return Ok(request),
            // Without a request in flight a broker sends nothing, except that it closes the connection.
            data = self.reader.fill_buf() => data.map(|bytes| !bytes.is_empty()),
        };
        // Both may happen at once: a request is registered before it is sent.
        if let Ok(request) = self.sent.try_recv() {
            return Ok(Some(request));
        }
        if matches!(has_data, Ok(false)) {
            return self.close_idle().await;
        }
        Err(match has_data {
            Ok(_) => unavailable(&self.address, "unexpected data without a request in flight"),
            Err(err) => unavailable(&self.address, err),
        })
    }

    /// Handles the end of an idle connection. Brokers close idle connections (`connections.max.idle.ms`, ten minutes by
    /// default), which is not a failure if they respond on a new one. A dying broker may still accept connections, so
    /// a request is sent.
    async fn close_idle(&mut self) -> Result<Option<SentRequest>, SinkError> {
        // From here on nothing can be sent on this connection.
        self.sent.close();
        if self.sent.try_recv().is_ok() {
            return Err(unavailable(
                &self.address,
                "connection closed by the broker",
            ));
        }
        let mut probe = dial(&self.address, &self.options).await?;
        probe.negotiate_versions(&self.options).await?;
        Ok(None)
    }
}

fn decode(mut frame: Bytes, correlation_id: i32) -> anyhow::Result<ProduceResponse> {
    let version = ProduceResponse::header_version(PRODUCE_VERSION);
    let header = ResponseHeader::decode(&mut frame, version)?;
    anyhow::ensure!(
        header.correlation_id == correlation_id,
        "malformed response: correlation id {}, expected {correlation_id}",
        header.correlation_id
    );
    validate_response(ProduceRequest::KEY, PRODUCE_VERSION, &frame)?;
    ProduceResponse::decode(&mut frame, PRODUCE_VERSION)
}

/// Returns whether the response has each partition of the request exactly once and no others. A batch missing from the
/// response must not count as acknowledged.
fn covers_batches(response: &ProduceResponse, batches: &[SentBatch]) -> bool {
    let mut sent: Vec<(&str, i32)> = (batches.iter())
        .map(|batch| (&*batch.topic, batch.partition))
        .collect();
    let mut acknowledged: Vec<(&str, i32)> = (response.responses.iter())
        .flat_map(|topic| {
            let partitions = topic.partition_responses.iter();
            partitions.map(|partition| (topic.name.as_str(), partition.index))
        })
        .collect();
    sent.sort_unstable();
    acknowledged.sort_unstable();
    sent == acknowledged
}

/// Distinguishes rejections from errors after which a new sink may succeed.
fn classify(
    err: ResponseError,
    topic: &str,
    partition: &PartitionProduceResponse,
    address: &str,
) -> SinkError {
    use ResponseError as E;
    let detail = partition.error_message.as_deref().unwrap_or_default();
    let separator = if detail.is_empty() { "" } else { ": " };
    let reason = format!("{err}{separator}{detail}");
    match err {
        E::InvalidProducerEpoch | E::ProducerFenced => SinkError::Fenced,
        E::MessageTooLarge
        | E::RecordListTooLarge
        | E::InvalidRecord
        | E::InvalidTimestamp
        | E::InvalidTopicException
        | E::TopicAuthorizationFailed
        | E::PolicyViolation => SinkError::rejected(topic, reason),
        _ => unavailable(
            address,
            format!("partition {topic}-{}: {reason}", partition.index),
        ),
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::{
        messages::{TopicName, produce_response::TopicProduceResponse},
        protocol::StrBytes,
    };

    use super::*;

    fn response(topics: &[(&'static str, &[i32])]) -> ProduceResponse {
        let topic = |(name, partitions): &(&'static str, &[i32])| {
            let partition = |index: &i32| PartitionProduceResponse::default().with_index(*index);
            TopicProduceResponse::default()
                .with_name(TopicName(StrBytes::from_static_str(name)))
                .with_partition_responses(partitions.iter().map(partition).collect())
        };
        ProduceResponse::default().with_responses(topics.iter().map(topic).collect())
    }

    #[test]
    fn a_response_that_leaves_out_a_partition_acknowledges_nothing() {
        let batches = [("a", 0), ("a", 1), ("b", 0)].map(|(topic, partition)| SentBatch {
            topic: topic.into(),
            partition,
            first: 0,
        });
        // A response may list partitions in any order.
        for (topics, is_complete) in [
            (&[("b", &[0][..]), ("a", &[1, 0][..])][..], true),
            (&[("a", &[0, 1][..])][..], false),
            (&[("a", &[0][..]), ("b", &[0][..])][..], false),
            (&[("a", &[0, 0][..]), ("b", &[0][..])][..], false),
            (&[("a", &[0, 1, 2][..]), ("b", &[0][..])][..], false),
            (&[("a", &[0, 1][..]), ("c", &[0][..])][..], false),
            (&[][..], false),
        ] {
            assert_eq!(
                covers_batches(&response(topics), &batches),
                is_complete,
                "{topics:?}"
            );
        }
    }
}
