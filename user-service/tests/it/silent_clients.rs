//! Clients that hold connections without using them do not lock others out.
#![cfg(target_os = "linux")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use devstack::{WAIT_TIMEOUT, eventually};
use futures_util::future::{join_all, try_join_all};
use proto::user::v1::user_service_client::UserServiceClient;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tonic::{Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::{
    harness::{TestService, request},
    wire::open_call,
};

const CREATE_USER: &str = "/user.v1.UserService/CreateUser";
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// The time within which a client gets its response while others hold connections.
const SOON: Duration = Duration::from_secs(10);

const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OTHER_ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

async fn connect(service: &TestService, from: IpAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    Ok(socket.connect(service.addr).await?)
}

async fn channel(service: &TestService, from: IpAddr) -> Result<Channel> {
    let endpoint = service.endpoint()?.local_address(Some(from));
    Ok(endpoint.connect().await?)
}

/// Sends the headers of a gRPC-Web call over HTTP/1.1 that announce a body.
async fn send_headers(connection: &mut TcpStream, path: &str) -> Result<()> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc-web+proto\r\n\
         content-length: 999\r\n\r\n"
    );
    Ok(connection.write_all(head.as_bytes()).await?)
}

/// Half a request, which stays open until it is dropped.
#[expect(dead_code, reason = "held, not read")]
enum HalfRequest {
    Http1(TcpStream),
    Http2(h2::SendStream<bytes::Bytes>),
}

/// Opens a connection and sends half a request: the headers without the body.
async fn send_half_request(
    service: &TestService,
    number: usize,
    from: IpAddr,
) -> Result<HalfRequest> {
    let path = [CREATE_USER, HEALTH_CHECK, HEALTH_WATCH, REFLECTION][number / 2 % 4];
    let mut connection = connect(service, from).await?;
    if number.is_multiple_of(2) {
        send_headers(&mut connection, path).await?;
        return Ok(HalfRequest::Http1(connection));
    }
    let (_, body) = open_call(connection, service.addr, path).await?;
    Ok(HalfRequest::Http2(body))
}

async fn send_half_requests(
    service: &TestService,
    count: usize,
    from: IpAddr,
) -> Result<Vec<HalfRequest>> {
    try_join_all((0..count).map(|number| send_half_request(service, number, from))).await
}

/// Checks the health and creates a user, on a new connection each.
async fn check_and_create(service: &TestService, from: IpAddr, name: &str) -> Result<()> {
    let calls = async {
        let mut health = HealthClient::new(channel(service, from).await?);
        health.check(HealthCheckRequest::default()).await?;
        let mut users = UserServiceClient::new(channel(service, from).await?);
        users.create_user(request(name)).await?;
        anyhow::Ok(())
    };
    timeout(SOON, calls).await.context("locked out")?
}

/// Opens a health watch on a new connection, and returns it when the service is healthy.
async fn watch(service: &TestService, from: IpAddr) -> Result<Streaming<HealthCheckResponse>> {
    let mut health = HealthClient::new(channel(service, from).await?);
    let watch = health.watch(HealthCheckRequest::default()).await?;
    let mut watch = watch.into_inner();
    while watch.message().await?.context("no status")?.status() != ServingStatus::Serving {}
    Ok(watch)
}

#[tokio::test(flavor = "multi_thread")]
async fn half_requests_lock_no_client_out() -> Result<()> {
    let limits = ["--max-connections=40", "--max-connections-per-peer=40"];
    let service = TestService::start_with("half_requests", &limits).await?;
    let half_requests = send_half_requests(&service, 40, ATTACKER).await?;
    check_and_create(&service, CLIENT, "ada").await?;
    // Nor clients with the same address.
    check_and_create(&service, ATTACKER, "bob").await?;
    drop(half_requests);
    service.stop().await
}

/// Connects and sends a PING every second, without a call.
async fn send_pings(service: &TestService, from: IpAddr) -> Result<Channel> {
    let endpoint = (service.endpoint()?.local_address(Some(from)))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_without_calls_lock_no_client_out() -> Result<()> {
    let service = TestService::start_with("pings", &["--max-connections=10"]).await?;
    let attackers = [ATTACKER; 5].into_iter().chain([OTHER_ATTACKER; 5]);
    let pinging = try_join_all(attackers.map(|from| send_pings(&service, from))).await?;
    check_and_create(&service, CLIENT, "ada").await?;
    // Nor clients with the same address.
    check_and_create(&service, ATTACKER, "bob").await?;
    drop(pinging);
    service.stop().await
}

/// Sends PINGs and reads none of the responses, until the server does not read either or closes the connection.
async fn send_pings_without_reading(connection: &mut TcpStream) -> Result<()> {
    const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    connection
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await?;
    connection.write_all(EMPTY_SETTINGS).await?;
    let pings = PING.repeat(1_000);
    while let Ok(written) = timeout(Duration::from_secs(1), connection.write_all(&pings)).await {
        written?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_is_disconnected_for_another() -> Result<()> {
    let service = TestService::start_with("unread", &["--max-connections=1"]).await?;
    let mut flooding = connect(&service, ATTACKER).await?;
    send_pings_without_reading(&mut flooding).await?;
    let mut health = HealthClient::new(channel(&service, CLIENT).await?);
    let check = health.check(HealthCheckRequest::default());
    timeout(SOON, check).await.context("locked out")??;
    let disconnected = async { while flooding.write_all(&[0]).await.is_ok() {} };
    let disconnected = timeout(SOON, disconnected).await;
    disconnected.context("the connection stays open")?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_call_is_not_closed_for_another() -> Result<()> {
    let limits = ["--max-connections=2", "--max-connections-per-peer=2"];
    let service = TestService::start_with("in_use", &limits).await?;
    let mut watched = watch(&service, CLIENT).await?;
    // Takes the other connection, which the next client replaces.
    let half_requests = send_half_requests(&service, 1, ATTACKER).await?;
    check_and_create(&service, CLIENT, "ada").await?;
    // A watch gets a last message at the shutdown, if its connection is open.
    service.shutdown.cancel();
    let ended = async {
        while let Some(response) = watched.message().await? {
            if response.status() == ServingStatus::NotServing {
                return Ok(true);
            }
        }
        anyhow::Ok(false)
    };
    ensure!(
        timeout(WAIT_TIMEOUT, ended).await??,
        "the watch ended early"
    );
    drop(half_requests);
    service.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections() -> Result<()> {
    let service = TestService::start_with("one_address", &["--max-connections=10"]).await?;
    // Watches are calls in progress: their connections are not idle.
    let watches = join_all((0..10).map(|_| watch(&service, ATTACKER))).await;
    let watches: Vec<_> = watches.into_iter().filter_map(Result::ok).collect();
    assert_eq!(watches.len(), 5);
    check_and_create(&service, CLIENT, "ada").await?;
    // A closed connection makes room for another one of the same address.
    drop(watches);
    eventually("a connection", async || {
        Ok(watch(&service, ATTACKER).await.ok())
    })
    .await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_body_ends_at_the_deadline() -> Result<()> {
    let service = TestService::start_with("no_body", &["--max-deadline-ms=300"]).await?;
    for path in [CREATE_USER, HEALTH_CHECK, HEALTH_WATCH, REFLECTION] {
        let mut connection = connect(&service, CLIENT).await?;
        send_headers(&mut connection, path).await?;
        let mut response = Vec::new();
        let reading = timeout(SOON, connection.read_to_end(&mut response)).await;
        reading.with_context(|| format!("{path} over HTTP/1.1 stays open"))??;
        let response = String::from_utf8_lossy(&response);
        ensure!(response.starts_with("HTTP/1.1 200"), "{path}: {response}");

        let connection = connect(&service, CLIENT).await?;
        let (response, _body) = open_call(connection, service.addr, path).await?;
        let ended = async {
            let mut body = response.await?.into_body();
            while body.data().await.transpose()?.is_some() {}
            Ok::<_, h2::Error>(())
        };
        let ended = timeout(SOON, ended).await;
        ended.with_context(|| format!("{path} over HTTP/2 stays open"))??;
    }
    service.stop().await
}
