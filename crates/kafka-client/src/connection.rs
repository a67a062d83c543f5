//! A connection to a broker: frames, and one request at a time.

use std::{io, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, RequestHeader, ResponseHeader},
    protocol::{Decodable as _, Encodable as _, HeaderVersion, Request, StrBytes},
};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    time::Instant,
};

use crate::{ApiVersions, Error, Hints, Options, Throttled, response_layout};

/// The limit on the length of a response: enough for the metadata of 400,000 partitions.
const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// The limit before authentication.
const MAX_UNAUTHENTICATED_FRAME_BYTES: usize = 64 * 1024;

/// If a broker closes the connection within this many requests, its listener probably has another security protocol.
const FIRST_REQUESTS: i32 = 2;

/// The receiving half of a connection.
pub type Reader = BufReader<Box<dyn AsyncRead + Send + Sync + Unpin>>;
/// The sending half of a connection.
pub type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// An open connection to a broker.
pub struct Connection {
    /// Receives responses.
    pub reader: Reader,
    /// Sends requests.
    pub writer: Writer,
    /// `host:port`.
    pub address: String,
    /// The time to replace the connection because its SASL session expires (KIP-368).
    pub stale_at: Option<Instant>,
    pub(crate) versions: ApiVersions,
    client_id: &'static str,
    hints: &'static Hints,
    last_correlation_id: i32,
    /// False from a request to its response. An abandoned request leaves a response that nothing reads.
    is_in_sync: bool,
    /// The limit on the length of a response.
    max_frame_bytes: usize,
    /// The broker reads nothing before, because of a quota.
    throttled_until: Instant,
}

impl Connection {
    /// Wraps the halves of an open stream to `address`.
    pub(crate) fn new(
        address: &str,
        options: &Options,
        reader: impl AsyncRead + Send + Sync + Unpin + 'static,
        writer: impl AsyncWrite + Send + Sync + Unpin + 'static,
    ) -> Self {
        Self {
            reader: BufReader::new(Box::new(reader)),
            writer: Box::new(writer),
            address: address.to_owned(),
            stale_at: None,
            versions: ApiVersions::default(),
            client_id: options.client_id,
            hints: options.hints,
            last_correlation_id: 0,
            is_in_sync: true,
            max_frame_bytes: MAX_UNAUTHENTICATED_FRAME_BYTES,
            throttled_until: Instant::now(),
        }
    }

    pub(crate) fn hints(&self) -> &'static Hints {
        self.hints
    }

    /// Raises the frame limit after authentication.
    pub(crate) fn set_authenticated(&mut self) {
        self.max_frame_bytes = MAX_FRAME_BYTES;
    }

    /// Returns whether a request can be sent. Otherwise the connection must be replaced: a request failed, the SASL
    /// session expires soon, or the broker closed the connection because it was idle (`connections.max.idle.ms`).
    pub async fn is_open(&mut self) -> bool {
        self.is_in_sync && !is_stale(self.stale_at) && !self.has_input().await
    }

    /// Returns whether something was received without a request, which is the end of the stream or an error.
    async fn has_input(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.reader.fill_buf() => true,
            () = std::future::ready(()) => false,
        }
    }

    /// Sends a request and waits for the response, for at most `timeout`. A throttle time that the last response announced is
    /// waited for before.
    ///
    /// # Errors
    /// If the broker does not respond in time or its response is malformed. The connection must be replaced.
    pub async fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        timeout: Duration,
    ) -> Result<R::Response, Error>
    where
        R::Response: Throttled,
    {
        tokio::time::sleep_until(self.throttled_until).await;
        self.last_correlation_id += 1;
        let id = self.last_correlation_id;
        self.is_in_sync = false;
        let malformed = |err: anyhow::Error| unavailable(&self.address, format!("{err:#}"));
        let frame = encode(request, version, id, self.client_id).map_err(malformed)?;
        let hints = self.hints;
        let (reader, writer) = (&mut self.reader, &mut self.writer);
        let max_frame_bytes = self.max_frame_bytes;
        let exchange = async {
            writer.write_all(&frame).await?;
            writer.flush().await?;
            read_frame_up_to(max_frame_bytes, reader, hints).await
        };
        let exchange = async {
            let frame = exchange.await;
            frame.map_err(|err| {
                if id <= FIRST_REQUESTS {
                    explain_early_close(err, hints)
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
        response_layout::validate(R::KEY, version, &response)
            .map_err(|err| malformed(err.into()))?;
        let response = R::Response::decode(&mut response, version).map_err(malformed)?;
        self.throttled_until = Instant::now() + response.throttle_time();
        self.is_in_sync = true;
        Ok(response)
    }
}

/// Returns whether `stale_at` has passed.
pub fn is_stale(stale_at: Option<Instant>) -> bool {
    stale_at.is_some_and(|at| at <= Instant::now())
}

/// Adds a hint to a TLS error.
pub(crate) fn with_tls_hint(err: io::Error, hints: &Hints) -> io::Error {
    match tls::hint_for(&err, &hints.certificates) {
        Some(hint) => with_hint(err, &hint),
        None => err,
    }
}

fn explain_early_close(err: io::Error, hints: &Hints) -> io::Error {
    use io::ErrorKind as Kind;
    match err.kind() {
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe => {
            with_hint(err, hints.closed_early)
        }
        _ => with_tls_hint(err, hints),
    }
}

pub(crate) fn with_hint(err: io::Error, hint: &str) -> io::Error {
    io::Error::new(err.kind(), format!("{err}; {hint}"))
}

/// Encodes a request with its length and header.
fn encode<R: Request>(
    request: &R,
    version: i16,
    id: i32,
    client_id: &'static str,
) -> anyhow::Result<BytesMut> {
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(id)
        .with_client_id(Some(StrBytes::from_static_str(client_id)))
        .encode(
            &mut frame,
            ApiKey::try_from(R::KEY).map_or(2, |key| key.request_header_version(version)),
        )?;
    request.encode(&mut frame, version)?;
    let length = i32::try_from(frame.len() - 4)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Reads the next response, without its length, on an authenticated connection. The caller limits the time.
///
/// # Errors
/// If the connection fails, or the announced length exceeds 16 MiB.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin), hints: &Hints) -> io::Result<Bytes> {
    read_frame_up_to(MAX_FRAME_BYTES, stream, hints).await
}

async fn read_frame_up_to(
    max_bytes: usize,
    stream: &mut (impl AsyncRead + Unpin),
    hints: &Hints,
) -> io::Result<Bytes> {
    let length = stream.read_i32().await?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > max_bytes {
        let message = format!("the response is not in Kafka's protocol; {}", hints.add_tls);
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
pub(crate) async fn with_timeout<T>(
    timeout: Duration,
    address: &str,
    operation: impl Future<Output = io::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(timeout, operation).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(err)) => Err(unavailable(address, err)),
        Err(_) => Err(Error::Unavailable(format!(
            "broker {address} did not respond within {} s",
            timeout.as_secs_f64()
        ))),
    }
}

/// Returns the error of a broker at this address.
pub fn unavailable(address: &str, reason: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("broker {address}: {reason}"))
}
