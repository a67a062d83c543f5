//! Reads the responses of one connection.

use bytes::Bytes;
use kafka_client::{Options, Reader, Throttled as _, dial, read_frame, validate_response};
use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        ProduceRequest, ProduceResponse, ResponseHeader, produce_response::PartitionProduceResponse,
    },
    protocol::{Decodable as _, HeaderVersion as _, Request as _},
};
use tokio::{io::AsyncBufReadExt as _, sync::mpsc};

use super::{SentBatch, SentRequest, silence::SilenceMonitor};
use crate::kafka::{
    Acknowledgements, RejectionCause, SinkError,
    native::{client::PRODUCE_VERSION, unavailable},
};

/// Reads the responses of one connection.
pub(super) struct ResponseReader {
    pub(super) reader: Reader,
    pub(super) sent: mpsc::UnboundedReceiver<SentRequest>,
    pub(super) acknowledgements: Acknowledgements,
    pub(super) address: String,
    pub(super) options: Options,
    pub(super) silence: SilenceMonitor,
}

impl ResponseReader {
    /// Runs until an error, or until the sink is dropped.
    pub(super) async fn run(mut self) {
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
        let progress = self.silence.progress();
        progress.record(request.sent_at);
        let frame = tokio::select! {
            // A process that was suspended finds both a response and the end of a timeout.
            biased;
            frame = read_frame(&mut self.reader, self.options.hints) => frame,
            err = self.silence.wait_until_lost(&request.batches) => return Err(err),
        };
        let frame = frame.map_err(|err| unavailable(&self.address, err))?;
        let response = decode(frame, request.correlation_id);
        let response = response.map_err(|reason| unavailable(&self.address, reason))?;
        let throttle_time = response.throttle_time();
        progress.record_throttle(throttle_time);
        self.acknowledgements.record_throttle(throttle_time);
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
        | E::InvalidTopicException
        | E::PolicyViolation => SinkError::rejected(topic, reason),
        E::TopicAuthorizationFailed => {
            SinkError::rejected(topic, reason).with_cause(RejectionCause::Environment)
        }
        E::InvalidTimestamp => SinkError::rejected(topic, reason).with_cause(RejectionCause::Clock),
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
