//! Produce requests: several on their way at once, answered in order.

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

use super::{
    cluster::{PRODUCE_VERSION, check_versions},
    connection::{
        Connection, Reader, Writer, is_stale, read_frame, unavailable, within, within_since,
    },
    dial::dial,
    produce_request::{Part, ProduceRequestFrame},
    response_layout,
};
use crate::{
    config::KafkaConfig,
    kafka::{Acknowledgements, SinkError},
    postgres::lease::Lease,
};

/// Requests on their way on one connection. With more the broker could no longer tell a repetition
/// from what is new: it remembers the last five batches of a producer.
const MAX_REQUESTS: u32 = 5;

/// The way to one broker, for records only.
pub(super) struct ProduceConnection {
    writer: Writer,
    address: String,
    timeout: Duration,
    last_correlation_id: i32,
    room: Arc<Semaphore>,
    acknowledgements: Acknowledgements,
    requests: mpsc::UnboundedSender<Pending>,
    stale_at: Option<Instant>,
    /// Reads the answers, and ends with the connection.
    answers: JoinHandle<()>,
}

/// A request that was sent.
#[derive(Debug)]
struct Pending {
    correlation_id: i32,
    batches: Vec<SentBatch>,
    sent_at: Instant,
    _room: OwnedSemaphorePermit,
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
    /// Connects; what is answered, or goes wrong, is told to `acknowledgements`.
    pub(super) async fn open(
        address: &str,
        kafka: &KafkaConfig,
        acknowledgements: Acknowledgements,
    ) -> Result<Self, SinkError> {
        let Connection {
            reader,
            writer,
            stale_at,
            ..
        } = dial(address, kafka).await?;
        // Never more than there is room for.
        let (requests, pending) = mpsc::unbounded_channel();
        let answers = Answers {
            reader,
            pending,
            acknowledgements: acknowledgements.clone(),
            address: address.to_owned(),
            kafka: kafka.clone(),
        };
        Ok(Self {
            acknowledgements,
            writer,
            address: address.to_owned(),
            timeout: kafka.delivery_timeout,
            last_correlation_id: 0,
            room: Arc::new(Semaphore::new(MAX_REQUESTS as usize)),
            requests,
            stale_at,
            answers: tokio::spawn(answers.run()),
        })
    }

    /// Whether the broker has closed it while nothing was on its way.
    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Whether there has to be another one, because the login runs out.
    pub(super) fn is_stale(&self) -> bool {
        is_stale(self.stale_at)
    }

    /// Waits until everything that is on its way here is answered, and what follows can go another
    /// way without getting past it.
    pub(super) async fn drain(&self) -> Result<(), SinkError> {
        drop(self.room(MAX_REQUESTS).await?);
        self.acknowledgements.ensure_usable()
    }

    /// Room for so many requests.
    async fn room(&self, places: u32) -> Result<OwnedSemaphorePermit, SinkError> {
        let room = Arc::clone(&self.room).acquire_many_owned(places);
        within(self.timeout, &self.address, async {
            room.await.map_err(std::io::Error::other)
        })
        .await
    }

    /// Sends a request; waits while as many are on their way as may be.
    ///
    /// The bytes go to the socket from where they are. When this returns they are needed no more:
    /// what is not acknowledged is read from the outbox once more.
    pub(super) async fn send(
        &mut self,
        parts: &[Part<'_>],
        in_flight: InFlight,
        lease: &Lease,
    ) -> Result<(), SinkError> {
        let room = self.room(in_flight as u32).await?;
        // The last wait before the bytes go: a successor knows how long these may take.
        lease.wait_until_valid().await;
        // It may be a failure that has made room.
        self.acknowledgements.ensure_usable()?;
        self.last_correlation_id = self.last_correlation_id.wrapping_add(1);
        let timeout_ms = i32::try_from(self.timeout.as_millis()).unwrap_or(i32::MAX);
        let frame = ProduceRequestFrame::new(parts, self.last_correlation_id, timeout_ms);
        let pending = Pending {
            correlation_id: self.last_correlation_id,
            batches: parts.iter().map(SentBatch::of).collect(),
            sent_at: Instant::now(),
            _room: room,
        };
        // Before the bytes: the answer may be faster than this task.
        let closed = |_| unavailable(&self.address, "the connection was closed");
        self.requests.send(pending).map_err(closed)?;
        let writing = write_all(&mut self.writer, frame.slices(parts));
        within(self.timeout, &self.address, writing).await
    }
}

/// How much of the [`MAX_REQUESTS`] a request takes.
#[derive(Clone, Copy)]
pub(super) enum InFlight {
    /// Others go before its answer comes.
    Pipelined = 1,
    /// It waits until all before it are answered, and those behind it wait until it is.
    Alone = MAX_REQUESTS as isize,
}

impl SentBatch {
    fn of(part: &Part<'_>) -> Self {
        Self {
            topic: Arc::clone(part.topic),
            partition: part.partition,
            first: part.first,
        }
    }
}

impl Drop for ProduceConnection {
    fn drop(&mut self) {
        self.answers.abort();
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
    // TLS keeps what the socket did not take.
    writer.flush().await
}

/// Reads the answers of one connection.
struct Answers {
    reader: Reader,
    pending: mpsc::UnboundedReceiver<Pending>,
    acknowledgements: Acknowledgements,
    address: String,
    kafka: KafkaConfig,
}

impl Answers {
    /// Ends upon an error, or when the sink is gone.
    async fn run(mut self) {
        loop {
            let pending = match self.next_pending().await {
                Ok(Some(pending)) => pending,
                Ok(None) => return,
                Err(err) => return self.acknowledgements.fail(err),
            };
            match self.answer_to(&pending).await {
                Ok(()) => {
                    let firsts = pending.batches.iter().map(|batch| batch.first);
                    self.acknowledgements.acknowledge(firsts);
                }
                // Before the request gives up its place: who gets it must know.
                Err(err) => return self.acknowledgements.fail(err),
            }
        }
    }

    async fn answer_to(&mut self, pending: &Pending) -> Result<(), SinkError> {
        let frame = read_frame(&mut self.reader);
        let timeout = self.kafka.delivery_timeout;
        let answer = within_since(pending.sent_at, timeout, &self.address, frame).await?;
        let answer = decode(answer, pending.correlation_id);
        let answer = answer.map_err(|reason| unavailable(&self.address, reason))?;
        if !answers_all(&answer, &pending.batches) {
            let reason = "the response is for other partitions than the request";
            return Err(unavailable(&self.address, reason));
        }
        for topic in &answer.responses {
            for partition in &topic.partition_responses {
                if let Some(err) = partition.error_code.err() {
                    return Err(classify(err, &topic.name, partition, &self.address));
                }
            }
        }
        Ok(())
    }

    /// The next request to be answered; none when the sink is gone.
    async fn next_pending(&mut self) -> Result<Option<Pending>, SinkError> {
        let unasked = tokio::select! {
            biased;
            pending = self.pending.recv() => return Ok(pending),
            // While nothing is on its way a broker says nothing, unless it goes.
            unasked = self.reader.fill_buf() => unasked.map(|bytes| !bytes.is_empty()),
        };
        // It may have been both at once: requests are noted before they are sent.
        if let Ok(pending) = self.pending.try_recv() {
            return Ok(Some(pending));
        }
        if matches!(unasked, Ok(false)) {
            return self.end_idle().await;
        }
        Err(match unasked {
            Ok(_) => unavailable(&self.address, "spoke unasked"),
            Err(err) => unavailable(&self.address, err),
        })
    }

    /// Brokers close a connection that was idle for long, by default for ten minutes. That is no
    /// failure as long as they answer on another one; a broker that dies may still take one.
    async fn end_idle(&mut self) -> Result<Option<Pending>, SinkError> {
        // From here on nothing can be sent on it.
        self.pending.close();
        if self.pending.try_recv().is_ok() {
            return Err(unavailable(&self.address, "closed the connection"));
        }
        let mut another = dial(&self.address, &self.kafka).await?;
        check_versions(&mut another, self.kafka.delivery_timeout).await?;
        Ok(None)
    }
}

fn decode(mut answer: Bytes, correlation_id: i32) -> anyhow::Result<ProduceResponse> {
    let version = ProduceResponse::header_version(PRODUCE_VERSION);
    let header = ResponseHeader::decode(&mut answer, version)?;
    anyhow::ensure!(
        header.correlation_id == correlation_id,
        "answered request {}, not {correlation_id}",
        header.correlation_id
    );
    response_layout::check(ProduceRequest::KEY, &answer)?;
    ProduceResponse::decode(&mut answer, PRODUCE_VERSION)
}

/// Whether the response has each partition of the request once, and no other. A batch that is not in it is not
/// acknowledged, whatever it says of the others.
fn answers_all(response: &ProduceResponse, batches: &[SentBatch]) -> bool {
    let mut sent: Vec<(&str, i32)> = (batches.iter())
        .map(|batch| (&*batch.topic, batch.partition))
        .collect();
    let mut answered: Vec<(&str, i32)> = (response.responses.iter())
        .flat_map(|topic| {
            let partitions = topic.partition_responses.iter();
            partitions.map(|partition| (topic.name.as_str(), partition.index))
        })
        .collect();
    sent.sort_unstable();
    answered.sort_unstable();
    sent == answered
}

/// Tells what will never be taken from what a new sink may get through.
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
        _ => unavailable(address, format!("{topic}-{}: {reason}", partition.index)),
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
        // Brokers answer in an order of their own.
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
                answers_all(&response(topics), &batches),
                is_complete,
                "{topics:?}"
            );
        }
    }
}
