//! Calls from web pages: gRPC-Web over HTTP/1.1, with CORS.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, Bytes};
use devstack::WAIT_TIMEOUT;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use proto::user::v1::{CreateUserRequest, CreateUserResponse};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status};

use crate::{
    harness::{TestService, USERS, assert_rejection, request},
    wire::frame,
};

const SHOP: &str = "https://shop.example.com";
const ALLOW_SHOP: &str = "--grpc-web-origins=https://shop.example.com";
/// The flag of a trailers frame.
const TRAILERS: u8 = 0x80;

/// An HTTP/1.1 response.
struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

/// Sends a request on a new connection.
async fn send_request(
    addr: SocketAddr,
    method: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let mut head = format!(
        "{method} /user.v1.UserService/CreateUser HTTP/1.1\r\n\
         host: {addr}\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(b"\r\n").await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    timeout(WAIT_TIMEOUT, reading)
        .await
        .context("no answer")??;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Answer> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.context("no end of the headers")?);
    let (status, lines) = std::str::from_utf8(head)?
        .split_once("\r\n")
        .context("no headers")?;
    let code = status.split(' ').nth(1).context("no status")?.parse()?;
    let headers = headers(lines)?;
    let mut body = Bytes::copy_from_slice(&body[4..]);
    if headers
        .get("transfer-encoding")
        .is_some_and(|coding| coding == "chunked")
    {
        body = decode_chunks(body)?;
    }
    Ok(Answer {
        code,
        headers,
        body,
    })
}

fn headers(lines: &str) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.lines() {
        let (name, value) = line.split_once(':').context("a header without a value")?;
        headers.append(
            HeaderName::try_from(name)?,
            HeaderValue::from_str(value.trim())?,
        );
    }
    Ok(headers)
}

/// Decodes a chunked body.
fn decode_chunks(mut chunks: Bytes) -> Result<Bytes> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|bytes| bytes == b"\r\n");
        let size = chunks.split_to(end.context("a chunk without a size")?);
        let size = usize::from_str_radix(std::str::from_utf8(&size)?, 16)?;
        ensure!(chunks.len() >= size + 4, "a chunk that ends too soon");
        chunks.advance(2);
        body.extend(chunks.split_to(size));
        chunks.advance(2);
        if size == 0 {
            return Ok(body.into());
        }
    }
}

/// Splits a body into frames: flag and content.
fn frames(mut body: Bytes) -> Result<Vec<(u8, Bytes)>> {
    let mut frames = Vec::new();
    while body.has_remaining() {
        ensure!(body.len() >= 5, "a frame that ends too soon");
        let (kind, size) = (body.get_u8(), body.get_u32() as usize);
        ensure!(body.len() >= size, "a frame that ends too soon");
        frames.push((kind, body.split_to(size)));
    }
    Ok(frames)
}

/// Calls like a page of this origin.
async fn call(service: &TestService, origin: &str, request: &CreateUserRequest) -> Result<Answer> {
    let headers = [
        ("content-type", "application/grpc-web+proto"),
        ("x-grpc-web", "1"),
        ("origin", origin),
    ];
    let body = frame(&request.encode_to_vec());
    let answer = send_request(service.addr, "POST", &headers, &body).await?;
    ensure!(answer.code == 200, "the code was {}", answer.code);
    Ok(answer)
}

/// Sends a preflight request for this origin.
async fn preflight(service: &TestService, origin: &str) -> Result<HeaderMap> {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "content-type,x-grpc-web,x-consistency-token",
        ),
    ];
    Ok(send_request(service.addr, "OPTIONS", &headers, &[])
        .await?
        .headers)
}

/// Returns the lowercase elements of a list header, or nothing if it is missing.
fn list(headers: &HeaderMap, name: &str) -> Result<Vec<String>> {
    let Some(value) = headers.get(name) else {
        return Ok(Vec::new());
    };
    let elements = value.to_str()?.split(',');
    Ok(elements.map(|text| text.trim().to_lowercase()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_can_call_over_http_1_and_gets_message_and_trailers() -> Result<()> {
    let service = TestService::start_with("web", &[ALLOW_SHOP]).await?;
    let answer = call(&service, SHOP, &request("ada")).await?;
    let content_type = answer.headers.get("content-type");
    let content_type = content_type.context("no content-type")?.to_str()?;
    assert!(
        content_type.starts_with("application/grpc-web"),
        "{content_type}"
    );
    let frames = frames(answer.body)?;
    let [(0, message), (TRAILERS, trailers)] = &frames[..] else {
        panic!("not a message and trailers: {frames:?}");
    };
    let response = CreateUserResponse::decode(&**message)?;
    let user = response.user.context("a response without a user")?;
    assert_eq!(service.get(&user.user_id).await?, user);
    let token = answer.headers.get(service_kit::CONSISTENCY_TOKEN);
    assert_eq!(token.context("no token")?, &*response.consistency_token);
    let trailers = headers(std::str::from_utf8(trailers)?)?;
    let status = Status::from_header_map(&trailers).context("no grpc-status")?;
    assert_eq!(status.code(), Code::Ok);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_gets_all_details_of_a_rejection() -> Result<()> {
    let service = TestService::start_with("web_rejection", &[ALLOW_SHOP]).await?;
    let answer = call(&service, SHOP, &request("")).await?;
    assert!(frames(answer.body)?.is_empty());
    assert!(answer.headers.contains_key("grpc-status-details-bin"));
    let status = Status::from_header_map(&answer.headers).context("no grpc-status")?;
    let details = assert_rejection(&status, Code::InvalidArgument, "VALIDATION_FAILED");
    let violations = details.bad_request().context("no BadRequest")?;
    assert_eq!(violations.field_violations.len(), 2);
    assert_eq!(service.sql.count(USERS).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_the_configured_origins_may_call() -> Result<()> {
    let service = TestService::start_with("origins", &[ALLOW_SHOP]).await?;
    let allowed = preflight(&service, SHOP).await?;
    assert_eq!(list(&allowed, "access-control-allow-origin")?, [SHOP]);
    assert_eq!(list(&allowed, "access-control-allow-methods")?, ["post"]);
    let sent = list(&allowed, "access-control-allow-headers")?;
    for name in [
        "content-type",
        "x-grpc-web",
        "x-consistency-token",
        "grpc-timeout",
    ] {
        assert!(sent.iter().any(|sent| sent == name), "{name}: {sent:?}");
    }
    for other in [
        "https://evil.example.com",
        "http://shop.example.com",
        "https://shop.example.com.evil.example",
        "null",
    ] {
        let headers = preflight(&service, other).await?;
        assert!(list(&headers, "access-control-allow-origin")?.is_empty());
        let headers = call(&service, other, &request("")).await?.headers;
        assert!(list(&headers, "access-control-allow-origin")?.is_empty());
    }
    service.stop().await?;
    // No origin by default, and any origin with `*`.
    let service = TestService::start("no_origins").await?;
    let headers = preflight(&service, SHOP).await?;
    assert!(list(&headers, "access-control-allow-origin")?.is_empty());
    service.stop().await?;
    let service = TestService::start_with("any_origin", &["--grpc-web-origins=*"]).await?;
    let headers = preflight(&service, SHOP).await?;
    assert_eq!(list(&headers, "access-control-allow-origin")?, ["*"]);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_can_read_all_headers_of_responses_and_rejections() -> Result<()> {
    let service = TestService::start_with("exposed", &[ALLOW_SHOP]).await?;
    for request in [request("ada"), request("")] {
        let headers = call(&service, SHOP, &request).await?.headers;
        assert_eq!(list(&headers, "access-control-allow-origin")?, [SHOP]);
        let exposed = list(&headers, "access-control-expose-headers")?;
        for name in [
            "grpc-status",
            "grpc-message",
            "grpc-status-details-bin",
            "grpc-retry-pushback-ms",
            "x-consistency-token",
        ] {
            assert!(
                exposed.iter().any(|seen| seen == name),
                "{name}: {exposed:?}"
            );
        }
    }
    service.stop().await
}
