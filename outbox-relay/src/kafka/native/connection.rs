//! A connection to a broker: frames, and calls that are answered one after the other.

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
use crate::{kafka::SinkError, tls};

/// How brokers know us, in their logs and quotas.
pub(super) const CLIENT_ID: &str = "outbox-relay";
/// Longer answers than this are not Kafka's: one of this length names 400,000 partitions.
const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// The same while nobody has shown who answers.
const MAX_LOGIN_FRAME_BYTES: usize = 64 * 1024;

/// Calls at which a broker that wants to be reached in another way ends the connection.
const FIRST_CALLS: i32 = 2;
const SETTINGS: tls::Settings = tls::Settings {
    ca: "kafka.tls.ca_file",
    address: "each of kafka.brokers, and of the brokers' advertised.listeners,",
    identity: "kafka.tls.certificate_file and key_file",
};

/// What comes from a broker.
pub(super) type Reader = BufReader<Box<dyn AsyncRead + Send + Sync + Unpin>>;
/// What goes to it.
pub(super) type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// A broker, on the other end.
pub(super) struct Connection {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) address: String,
    /// From when on there has to be another connection, because the login runs out.
    pub(super) stale_at: Option<Instant>,
    last_correlation_id: i32,
    /// The longest answer that is read.
    max_frame_bytes: usize,
}

impl Connection {
    /// A connection over an open stream to `address`, whose halves these are.
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
            max_frame_bytes: MAX_LOGIN_FRAME_BYTES,
        }
    }

    /// The login is done, or none is asked for.
    pub(super) fn logged_in(&mut self) {
        self.max_frame_bytes = MAX_FRAME_BYTES;
    }

    /// Whether there has to be another one, because the login runs out.
    pub(super) fn is_stale(&self) -> bool {
        is_stale(self.stale_at)
    }

    /// Asks, and waits for the answer.
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
        let asking = async {
            writer.write_all(&frame).await?;
            writer.flush().await?;
            read_frame_up_to(max_frame_bytes, reader).await
        };
        let asking = async {
            let answer = asking.await;
            answer.map_err(|err| {
                if id <= FIRST_CALLS {
                    ended_early(err)
                } else {
                    err
                }
            })
        };
        let mut answer = within(timeout, &self.address, asking).await?;
        let header_version = R::Response::header_version(version);
        let header = ResponseHeader::decode(&mut answer, header_version).map_err(malformed)?;
        if header.correlation_id != id {
            let reason = format!("answered call {}, not {id}", header.correlation_id);
            return Err(unavailable(&self.address, reason));
        }
        response_layout::check(R::KEY, &answer).map_err(|err| malformed(err.into()))?;
        R::Response::decode(&mut answer, version).map_err(malformed)
    }
}

/// Whether it is time for another connection.
pub(super) fn is_stale(stale_at: Option<Instant>) -> bool {
    stale_at.is_some_and(|at| at <= Instant::now())
}

/// The error, with what to do about it.
pub(super) fn explained(err: io::Error) -> io::Error {
    match tls::way_out(&err, &SETTINGS) {
        Some(way_out) => with_way_out(err, &way_out),
        None => err,
    }
}

fn ended_early(err: io::Error) -> io::Error {
    use io::ErrorKind as Kind;
    match err.kind() {
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe => {
            with_way_out(err, "does this port ask for [kafka.tls] or [kafka.sasl]?")
        }
        _ => explained(err),
    }
}

pub(super) fn with_way_out(err: io::Error, way_out: &str) -> io::Error {
    io::Error::new(err.kind(), format!("{err}; {way_out}"))
}

/// A request with its length and its header before it.
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

/// The next answer, without its length, on a connection whose login is done.
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
            "the answer is none of Kafka's; does this port ask for TLS? Then add [kafka.tls]";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    // Grows with what comes: a length alone reserves nothing.
    let mut frame = BytesMut::with_capacity(length.min(64 * 1024));
    while frame.len() < length {
        let missing = length - frame.len();
        if stream.read_buf(&mut (&mut frame).limit(missing)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(frame.freeze())
}

/// Bounds something that is asked of a broker.
pub(super) async fn within<T>(
    timeout: Duration,
    address: &str,
    asking: impl Future<Output = io::Result<T>>,
) -> Result<T, SinkError> {
    within_since(Instant::now(), timeout, address, asking).await
}

/// The same, for something that was asked before.
pub(super) async fn within_since<T>(
    asked_at: Instant,
    timeout: Duration,
    address: &str,
    asking: impl Future<Output = io::Result<T>>,
) -> Result<T, SinkError> {
    match tokio::time::timeout_at(asked_at + timeout, asking).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(err)) => Err(unavailable(address, err)),
        Err(_) => Err(unavailable(
            address,
            format!("no answer within {timeout:?}"),
        )),
    }
}

pub(super) fn unavailable(address: &str, reason: impl std::fmt::Display) -> SinkError {
    SinkError::Unavailable(format!("broker {address}: {reason}"))
}
