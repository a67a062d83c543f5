//! A connection to a broker: frames, and one request at a time.

use std::{io, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, RequestHeader, ResponseHeader},
    protocol::{Decodable as _, Encodable as _, HeaderVersion, Request, StrBytes},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    time::Instant,
};

use super::response_layout;
use crate::kafka::SinkError;

/// The client id in the brokers' logs and quotas.
pub(super) const CLIENT_ID: &str = "outbox-relay";
/// The limit on the length of a response: enough for the metadata of 400,000 partitions.
const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// The limit before authentication.
const MAX_UNAUTHENTICATED_FRAME_BYTES: usize = 64 * 1024;

/// If a broker closes the connection within this many requests, its listener probably has another security protocol.
const FIRST_REQUESTS: i32 = 2;
const SETTINGS: tls::Settings = tls::Settings {
    ca: "kafka.tls.ca_file",
    address: "each host in kafka.brokers and the brokers' advertised.listeners",
    identity: "kafka.tls.certificate_file and key_file",
};

pub(super) type Reader = BufReader<Box<dyn AsyncRead + Send + Sync + Unpin>>;
pub(super) type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// An open connection to a broker.
pub(super) struct Connection {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) address: String,
    /// The time to replace the connection because its SASL session expires (KIP-368).
    pub(super) stale_at: Option<Instant>,
    last_correlation_id: i32,
    /// The limit on the length of a response.
    max_frame_bytes: usize,
}

impl Connection {
    /// Wraps the halves of an open stream to `address`.
    pub(super) fn new(
        address: &str,
        reader: impl AsyncRead + Send + Sync + Unpin + 'static,
        writer: impl AsyncWrite + Send + Sync + Unpin + 'static,
    ) -> Self {
        Self {
            reader: BufReader::new(Box::new(reader)),
            writer: Box::new(writer),
            address: address.to_owned(),
            stale_at: None,
            last_correlation_id: 0,
            max_frame_bytes: MAX_UNAUTHENTICATED_FRAME_BYTES,
        }
    }

    /// Raises the frame limit after authentication.
    pub(super) fn set_authenticated(&mut self) {
        self.max_frame_bytes = MAX_FRAME_BYTES;
    }

    /// Returns whether the connection must be replaced before its SASL session expires.
    pub(super) fn is_stale(&self) -> bool {
        is_stale(self.stale_at)
    }

    /// Sends a request and waits for the response.
    pub(super) async fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        timeout: Duration,
    ) -> Result<R::Response, SinkError> {
        self.last_correlation_id += 1;
        let id = self.last_correlation_id;
        let malformed = |err: anyhow::Error| unavailable(&self.address, format!("{err:#}"));
        let frame = encode(request, version, id).map_err(malformed)?;
        let (reader, writer) = (&mut self.reader, &mut self.writer);
        let max_frame_bytes = self.max_frame_bytes;
        let exchange = async {
            writer.write_all(&frame).await?;
            writer.flush().await?;
            read_frame_up_to(max_frame_bytes, reader).await
        };
        let exchange = async {
            let frame = exchange.await;
            frame.map_err(|err| {
                if id <= FIRST_REQUESTS {
                    explain_early_close(err)
                } else {
                    err
                }
            })
        };
        let mut response = with_timeout(timeout, &self.address, exchange).await?;
        let header_version = R::Response::header_version(version);
        let header = ResponseHeader::decode(&mut response, header_version).map_err(malformed)?;
        if header.correlation_id != id {
            let reason = format!(
                "malformed response: correlation id {}, expected {id}",
                header.correlation_id
            );
            return Err(unavailable(&self.address, reason));
        }
        response_layout::validate(R::KEY, &response).map_err(|err| malformed(err.into()))?;
        R::Response::decode(&mut response, version).map_err(malformed)
    }
}

/// Returns whether `stale_at` has passed.
pub(super) fn is_stale(stale_at: Option<Instant>) -> bool {
    stale_at.is_some_and(|at| at <= Instant::now())
}

/// Adds a hint to a TLS error.
pub(super) fn with_tls_hint(err: io::Error) -> io::Error {
    match tls::hint_for(&err, &SETTINGS) {
        Some(hint) => with_hint(err, &hint),
        None => err,
    }
}

fn explain_early_close(err: io::Error) -> io::Error {
    use io::ErrorKind as Kind;
    match err.kind() {
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe => with_hint(
            err,
            "check whether this port requires [kafka.tls] or [kafka.sasl]",
        ),
        _ => with_tls_hint(err),
    }
}

pub(super) fn with_hint(err: io::Error, hint: &str) -> io::Error {
    io::Error::new(err.kind(), format!("{err}; {hint}"))
}

/// Encodes a request with its length and header.
fn encode<R: Request>(request: &R, version: i16, id: i32) -> anyhow::Result<BytesMut> {
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(id)
        .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)))
        .encode(
            &mut frame,
            ApiKey::try_from(R::KEY).map_or(2, |key| key.request_header_version(version)),
        )?;
    request.encode(&mut frame, version)?;
    let length = i32::try_from(frame.len() - 4)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Reads the next response, without its length, on an authenticated connection.
pub(super) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    read_frame_up_to(MAX_FRAME_BYTES, stream).await
}

async fn read_frame_up_to(
    max_bytes: usize,
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Bytes> {
    let length = stream.read_i32().await?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > max_bytes {
        let message =
            "the response is not in Kafka's protocol; if this port uses TLS, add [kafka.tls]";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    // Grows with the received bytes: an announced length alone reserves at most 64 KiB.
    let mut frame = BytesMut::with_capacity(length.min(64 * 1024));
    while frame.len() < length {
        let missing = length - frame.len();
        if stream.read_buf(&mut (&mut frame).limit(missing)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(frame.freeze())
}

/// Limits the time of an operation on a broker.
pub(super) async fn with_timeout<T>(
    timeout: Duration,
    address: &str,
    operation: impl Future<Output = io::Result<T>>,
) -> Result<T, SinkError> {
    with_timeout_since(Instant::now(), timeout, address, operation).await
}

/// Limits the time of an operation that started earlier.
pub(super) async fn with_timeout_since<T>(
    started_at: Instant,
    timeout: Duration,
    address: &str,
    operation: impl Future<Output = io::Result<T>>,
) -> Result<T, SinkError> {
    match tokio::time::timeout_at(started_at + timeout, operation).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(err)) => Err(unavailable(address, err)),
        Err(_) => Err(SinkError::Unavailable(format!(
            "broker {address} did not respond within {} s",
            timeout.as_secs_f64()
        ))),
    }
}

pub(super) fn unavailable(address: &str, reason: impl std::fmt::Display) -> SinkError {
    SinkError::Unavailable(format!("broker {address}: {reason}"))
}
