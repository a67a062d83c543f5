//! Authorization servers that misbehave.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use kafka_client::{
    ClientCredentials, Error, Extensions, Sasl, Security, TokenEndpoint, TokenSource, TokenUrl,
    dial,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    time::Instant,
};

use crate::harness::options;

const SECRET: &str = "hunter2";
const TIMEOUT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn an_unusable_response_is_an_error_that_shows_no_secret() -> Result<()> {
    let redirect =
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "a".repeat(100_000));
    for (response, words) in [
        (redirect, "unexpected response 302 Found; check the URL"),
        (&*endless, "length limit exceeded"),
        ("no HTTP at all", "invalid HTTP"),
        ("", "check the URL"),
        (&ok("no JSON"), "not JSON with an access_token"),
        (
            &ok(r#"{"token": "hunter2"}"#),
            "not JSON with an access_token",
        ),
        (
            &ok(r#"{"access_token": "hunter2\u0001auth=x"}"#),
            "invalid token",
        ),
        (&ok(r#"{"access_token": ""}"#), "contains no token"),
    ] {
        let err = dial_with_token(response).await?;
        let Error::Unauthenticated(text) = err else {
            panic!("{words}: {err:?}");
        };
        let start = "failed to get a token from http://127.0.0.1:";
        assert!(
            text.starts_with(start) && text.contains(words),
            "{words}: {text}"
        );
        assert!(!text.contains(SECRET), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_the_timeout() -> Result<()> {
    let begin = Instant::now();
    let err = dial_with_token("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await?;
    assert!(err.to_string().contains("no response within 1 s"), "{err}");
    assert!(begin.elapsed() < 10 * TIMEOUT);
    Ok(())
}

fn ok(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Connects to a broker, with a token from a server that sends this response, and returns the error.
async fn dial_with_token(response: &str) -> Result<Error> {
    let broker = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/token", serve(response.to_owned()).await?);
    let credentials = ClientCredentials {
        client_id: "client".into(),
        client_secret: SECRET.into(),
        scope: None,
        ca: None,
    };
    let url = TokenUrl::parse(&url).map_err(anyhow::Error::msg)?;
    let security = Security {
        tls: None,
        sasl: Some(Sasl::OAuthBearer {
            tokens: TokenSource::Endpoint(TokenEndpoint::new(url, credentials)),
            extensions: Extensions::default(),
        }),
    };
    let mut options = options(security);
    options.timeout = TIMEOUT;
    let dialed = dial(&broker.local_addr()?.to_string(), &options).await;
    Ok(dialed.err().expect("a connection without a token"))
}

/// Sends a response to one request. The connection stays open after an incomplete one.
async fn serve(response: String) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut request = BufReader::new(&mut stream).lines();
        while request
            .next_line()
            .await?
            .is_some_and(|line| !line.is_empty())
        {}
        stream.write_all(response.as_bytes()).await?;
        if !response.ends_with('{') {
            return stream.shutdown().await;
        }
        tokio::time::sleep(20 * TIMEOUT).await;
        Ok(())
    });
    Ok(address)
}
