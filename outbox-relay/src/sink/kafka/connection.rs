//! A connection to a broker: frames, and calls that are answered one after the other.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, RequestHeader, ResponseHeader},
    protocol::{Decodable as _, Encodable as _, HeaderVersion, Request, StrBytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::sink::SinkError;

/// How brokers know us, in their logs and quotas.
pub(super) const CLIENT_ID: &str = "outbox-relay";
/// Longer answers than this are not Kafka's.
const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;

/// A broker, on the other end.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) address: String,
    last_correlation_id: i32,
}

impl Connection {
    /// Connects to `host:port`.
    pub(super) async fn open(address: &str, timeout: Duration) -> Result<Self, SinkError> {
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = within(timeout, address, connecting).await?;
        Ok(Self {
            stream,
            address: address.to_owned(),
            last_correlation_id: 0,
        })
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
        let malformed = |err| unavailable(&self.address, format!("{err:#}"));
        let frame = encode(request, version, id).map_err(malformed)?;
        let stream = &mut self.stream;
        let asking = async {
            stream.write_all(&frame).await?;
            read_frame(stream).await
        };
        let mut answer = within(timeout, &self.address, asking).await?;
        let header_version = R::Response::header_version(version);
        let header = ResponseHeader::decode(&mut answer, header_version).map_err(malformed)?;
        if header.correlation_id != id {
            let reason = format!("answered call {}, not {id}", header.correlation_id);
            return Err(unavailable(&self.address, reason));
        }
        R::Response::decode(&mut answer, version).map_err(malformed)
    }
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

/// The next answer, without its length.
pub(super) async fn read_frame(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> std::io::Result<Bytes> {
    let length = stream.read_i32().await?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        let message = "the answer is none of Kafka's";
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            message,
        ));
    }
    // Grows with what comes: a length alone reserves nothing.
    let mut frame = BytesMut::with_capacity(length.min(64 * 1024));
    while frame.len() < length {
        let missing = length - frame.len();
        if stream.read_buf(&mut (&mut frame).limit(missing)).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(frame.freeze())
}

/// Bounds something that is asked of a broker.
pub(super) async fn within<T>(
    timeout: Duration,
    address: &str,
    asking: impl Future<Output = std::io::Result<T>>,
) -> Result<T, SinkError> {
    within_since(Instant::now(), timeout, address, asking).await
}

/// The same, for something that was asked before.
pub(super) async fn within_since<T>(
    asked_at: Instant,
    timeout: Duration,
    address: &str,
    asking: impl Future<Output = std::io::Result<T>>,
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
