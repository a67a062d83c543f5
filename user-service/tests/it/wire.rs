//! Calls without tonic's client, which ends a call at its deadline by itself and sends nothing but
//! what its service knows.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::TcpStream;
use tonic::Status;

/// Sends `message` to a method, and returns the rejection.
pub(crate) async fn rejected_call(
    addr: SocketAddr,
    path: &str,
    timeout: Option<&str>,
    message: &[u8],
) -> Result<Status> {
    let header = timeout.map(|timeout| ("grpc-timeout", timeout));
    rejected_call_with(addr, path, header, message).await
}

/// Sends `message` with a further header.
pub(crate) async fn rejected_call_with(
    addr: SocketAddr,
    path: &str,
    header: Option<(&str, &str)>,
    message: &[u8],
) -> Result<Status> {
    rejected_bytes(addr, path, header, frame(message)).await
}

/// Sends what need not be a message.
pub(crate) async fn rejected_bytes(
    addr: SocketAddr,
    path: &str,
    header: Option<(&str, &str)>,
    bytes: Bytes,
) -> Result<Status> {
    let stream = TcpStream::connect(addr).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{addr}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let (response, mut body) = sender
        .ready()
        .await?
        .send_request(request.body(())?, false)?;
    // A server that knows its answer already takes no more; then the answer is what counts.
    let _ = body.send_data(bytes, true);
    let response = response.await?;
    // A rejection is all headers; an answer would have its status behind its body.
    Status::from_header_map(response.headers()).context("it was not rejected")
}

/// A message as gRPC frames it: not compressed, its length, itself.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}
