//! Raw calls without tonic's client, which enforces deadlines itself and sends only valid messages.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{SendStream, client::ResponseFuture};
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
    let (response, mut body) = open_call_with(stream, addr, path, header).await?;
    // The server may respond before it has read the whole body.
    let _ = body.send_data(bytes, true);
    let response = response.await?;
    // A rejection has only headers; a success has its status in the trailers.
    Status::from_header_map(response.headers()).context("the call was accepted")
}

/// Sends the headers of a call over HTTP/2; returns the response and the body to send.
pub(crate) async fn open_call(
    stream: TcpStream,
    addr: SocketAddr,
    path: &str,
) -> Result<(ResponseFuture, SendStream<Bytes>)> {
    open_call_with(stream, addr, path, None).await
}

async fn open_call_with(
    stream: TcpStream,
    addr: SocketAddr,
    path: &str,
    header: Option<(&str, &str)>,
) -> Result<(ResponseFuture, SendStream<Bytes>)> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{addr}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let mut sender = sender.ready().await?;
    Ok(sender.send_request(request.body(())?, false)?)
}

/// Frames a message as gRPC does: the compression flag, the length, the message.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}
