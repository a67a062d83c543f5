//! Raw calls without tonic's client, which enforces deadlines itself and sends only valid messages.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::TcpStream;
use tonic::Status;

/// Sends `message` to a method and returns the rejection.
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

/// Sends arbitrary bytes.
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
    // The server may respond before it has read the whole body.
    let _ = body.send_data(bytes, true);
    let response = response.await?;
    // A rejection has only headers; a success has its status in the trailers.
    Status::from_header_map(response.headers()).context("the call was accepted")
}

/// Frames a message as gRPC does: the compression flag, the length, the message.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}
