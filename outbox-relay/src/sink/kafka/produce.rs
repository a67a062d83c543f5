//! Produce requests: several on their way at once, answered in order.

use std::{io::IoSlice, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes};
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        ProduceRequest, ProduceResponse, ResponseHeader, produce_response::PartitionProduceResponse,
    },
    protocol::{Decodable as _, HeaderVersion as _, Request as _},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::Instant,
};

use super::{
    cluster::{PRODUCE_VERSION, check_versions},
    connection::{CLIENT_ID, Connection, read_frame, unavailable, within},
    outstanding::Outstanding,
};
use crate::sink::SinkError;

/// Requests on their way on one connection. With more the broker could no longer tell a repetition
/// from what is new: it remembers the last five batches of a producer.
const MAX_REQUESTS: usize = 5;
const ACKS_ALL: i16 = -1;

/// One partition's part of a request.
pub(super) struct Part<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    /// A record batch.
    pub(super) batch: &'a [u8],
    /// The number of its first record, by which [`Outstanding`] knows it.
    pub(super) first: u64,
}

/// The way to one broker, for records only.
#[derive(Debug)]
pub(super) struct ProduceConnection {
    writer: OwnedWriteHalf,
    address: String,
    timeout: Duration,
    last_correlation_id: i32,
    room: Arc<Semaphore>,
    requests: mpsc::UnboundedSender<Pending>,
    /// Reads the answers, and ends with the connection.
    answers: JoinHandle<()>,
}

/// A request that was sent.
#[derive(Debug)]
struct Pending {
    correlation_id: i32,
    firsts: Vec<u64>,
    sent_at: Instant,
    _room: OwnedSemaphorePermit,
}

impl ProduceConnection {
    /// Connects; what is answered, or goes wrong, is told to `outstanding`.
    pub(super) async fn open(
        address: &str,
        timeout: Duration,
        outstanding: Outstanding,
    ) -> Result<Self, SinkError> {
        let connection = Connection::open(address, timeout).await?;
        let (reader, writer) = connection.stream.into_split();
        // Never more than there is room for.
        let (requests, pending) = mpsc::unbounded_channel();
        let answers = Answers {
            reader,
            pending,
            outstanding,
            address: address.to_owned(),
            timeout,
        };
        Ok(Self {
            writer,
            address: address.to_owned(),
            timeout,
            last_correlation_id: 0,
            room: Arc::new(Semaphore::new(MAX_REQUESTS)),
            requests,
            answers: tokio::spawn(answers.run()),
        })
    }

    /// Whether the broker has closed it while nothing was on its way.
    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Sends a request; waits while as many are on their way as may be.
    ///
    /// The bytes go to the socket from where they are. When this returns they are needed no more:
    /// what is not acknowledged is read from the outbox once more.
    pub(super) async fn send(&mut self, parts: &[Part<'_>]) -> Result<(), SinkError> {
        let room = Arc::clone(&self.room).acquire_owned();
        let room = within(self.timeout, &self.address, async {
            room.await.map_err(std::io::Error::other)
        })
        .await?;
        self.last_correlation_id = self.last_correlation_id.wrapping_add(1);
        let timeout_ms = i32::try_from(self.timeout.as_millis()).unwrap_or(i32::MAX);
        let frame = Frame::new(parts, self.last_correlation_id, timeout_ms);
        let pending = Pending {
            correlation_id: self.last_correlation_id,
            firsts: parts.iter().map(|part| part.first).collect(),
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

impl Drop for ProduceConnection {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

async fn write_all(
    writer: &mut OwnedWriteHalf,
    mut slices: Vec<IoSlice<'_>>,
) -> std::io::Result<()> {
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = writer.write_vectored(rest).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

/// What stands between the batches of a request. Encoded by hand, because an encoder of whole
/// messages would copy the batches into it; a test compares it with such a one.
struct Frame {
    bytes: Vec<u8>,
    /// Where in `bytes` each batch belongs.
    batches_at: Vec<usize>,
}

impl Frame {
    /// `parts` have to be in the order of their topics.
    fn new(parts: &[Part<'_>], correlation_id: i32, timeout_ms: i32) -> Self {
        let mut bytes = Vec::with_capacity(64 + parts.len() * 32);
        let mut batches_at = Vec::with_capacity(parts.len());
        let out = &mut bytes;
        out.put_i32(0);
        // The header, version 2; its client id is of the old, fixed form.
        out.put_i16(ProduceRequest::KEY);
        out.put_i16(PRODUCE_VERSION);
        out.put_i32(correlation_id);
        out.put_i16(i16::try_from(CLIENT_ID.len()).unwrap_or_default());
        out.put_slice(CLIENT_ID.as_bytes());
        put_no_tags(out);
        // No transactional id: none of this is a transaction.
        put_compact_length(out, None);
        out.put_i16(ACKS_ALL);
        out.put_i32(timeout_ms);
        let topics = || parts.chunk_by(|a, b| a.topic == b.topic);
        put_compact_length(out, Some(topics().count()));
        for parts in topics() {
            put_compact_length(out, Some(parts[0].topic.len()));
            out.put_slice(parts[0].topic.as_bytes());
            put_compact_length(out, Some(parts.len()));
            for part in parts {
                out.put_i32(part.partition);
                put_compact_length(out, Some(part.batch.len()));
                batches_at.push(out.len());
                put_no_tags(out);
            }
            put_no_tags(out);
        }
        put_no_tags(out);
        let batches: usize = parts.iter().map(|part| part.batch.len()).sum();
        let length = i32::try_from(bytes.len() + batches - 4).unwrap_or(i32::MAX);
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        Self { bytes, batches_at }
    }

    /// The whole request, in pieces.
    fn slices<'a>(&'a self, parts: &[Part<'a>]) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(2 * parts.len() + 1);
        let mut written = 0;
        for (part, &at) in parts.iter().zip(&self.batches_at) {
            slices.push(IoSlice::new(&self.bytes[written..at]));
            slices.push(IoSlice::new(part.batch));
            written = at;
        }
        slices.push(IoSlice::new(&self.bytes[written..]));
        slices
    }
}

/// Lengths in the newer messages are one more than they are, as base-128 numbers; 0 is null.
fn put_compact_length(out: &mut Vec<u8>, length: Option<usize>) {
    let mut rest = length.map_or(0, |length| length + 1);
    while rest >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "seven bits and the mark")]
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    out.push(rest as u8);
}

fn put_no_tags(out: &mut Vec<u8>) {
    out.push(0);
}

/// Reads the answers of one connection.
struct Answers {
    reader: OwnedReadHalf,
    pending: mpsc::UnboundedReceiver<Pending>,
    outstanding: Outstanding,
    address: String,
    timeout: Duration,
}

impl Answers {
    async fn run(mut self) {
        if let Err(err) = self.read_all().await {
            self.outstanding.fail(err);
        }
    }

    /// Ends with an error, or when the sink is gone.
    async fn read_all(&mut self) -> Result<(), SinkError> {
        while let Some(pending) = self.next_pending().await? {
            let left = self.timeout.saturating_sub(pending.sent_at.elapsed());
            let frame = read_frame(&mut self.reader);
            let answer = within(left, &self.address, frame).await?;
            let answer = decode(answer, pending.correlation_id);
            let answer = answer.map_err(|reason| unavailable(&self.address, reason))?;
            for topic in &answer.responses {
                for partition in &topic.partition_responses {
                    if let Some(err) = partition.error_code.err() {
                        return Err(classify(err, &topic.name, partition, &self.address));
                    }
                }
            }
            self.outstanding.acknowledge(&pending.firsts);
        }
        Ok(())
    }

    /// The next request to be answered; none when the sink is gone.
    async fn next_pending(&mut self) -> Result<Option<Pending>, SinkError> {
        let mut unasked = [0];
        let unasked = tokio::select! {
            biased;
            pending = self.pending.recv() => return Ok(pending),
            // While nothing is on its way a broker says nothing, unless it goes.
            unasked = self.reader.peek(&mut unasked) => unasked,
        };
        // It may have been both at once: requests are noted before they are sent.
        if let Ok(pending) = self.pending.try_recv() {
            return Ok(Some(pending));
        }
        if matches!(unasked, Ok(0)) {
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
        let mut another = Connection::open(&self.address, self.timeout).await?;
        check_versions(&mut another, self.timeout).await?;
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
    ProduceResponse::decode(&mut answer, PRODUCE_VERSION)
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
        | E::PolicyViolation => SinkError::refused(topic, reason),
        _ => unavailable(address, format!("{topic}-{}: {reason}", partition.index)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::{
        messages::{
            RequestHeader, TopicName,
            produce_request::{PartitionProduceData, TopicProduceData},
        },
        protocol::{Encodable as _, StrBytes},
    };

    use super::*;

    /// The same request, by the encoder of a crate that others wrote.
    fn reference(parts: &[Part<'_>]) -> BytesMut {
        let topics = parts.chunk_by(|a, b| a.topic == b.topic).map(|parts| {
            let partition = |part: &Part<'_>| {
                PartitionProduceData::default()
                    .with_index(part.partition)
                    .with_records(Some(Bytes::copy_from_slice(part.batch)))
            };
            TopicProduceData::default()
                .with_name(TopicName(StrBytes::from_string(parts[0].topic.to_owned())))
                .with_partition_data(parts.iter().map(partition).collect())
        });
        let mut frame = BytesMut::new();
        frame.put_i32(0);
        RequestHeader::default()
            .with_request_api_key(ProduceRequest::KEY)
            .with_request_api_version(PRODUCE_VERSION)
            .with_correlation_id(77)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)))
            .encode(&mut frame, ProduceRequest::header_version(PRODUCE_VERSION))
            .unwrap();
        ProduceRequest::default()
            .with_acks(ACKS_ALL)
            .with_timeout_ms(2_000)
            .with_topic_data(topics.collect())
            .encode(&mut frame, PRODUCE_VERSION)
            .unwrap();
        let length = u32::try_from(frame.len() - 4).unwrap();
        frame[..4].copy_from_slice(&length.to_be_bytes());
        frame
    }

    #[test]
    fn a_request_is_what_others_make_of_it() {
        let (small, large) = (vec![1; 100], vec![2; 70_000]);
        let long_name = "t".repeat(200);
        let part = |topic, partition, batch| Part {
            topic,
            partition,
            batch,
            first: 0,
        };
        for parts in [
            vec![part("orders.v1", 3, &small)],
            vec![
                part("a", 0, &small),
                part("a", 1, &large),
                part(&long_name, 200, &small),
            ],
        ] {
            let frame = Frame::new(&parts, 77, 2_000);
            let pieces = frame.slices(&parts);
            let whole: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| piece.iter().copied())
                .collect();
            assert_eq!(whole, reference(&parts));
        }
    }
}
