//! Revokes and grants reading a topic, as an administrator does with `kafka-acls.sh`.

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Constants of the protocol: see "ACL" in <https://kafka.apache.org/protocol>.
const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const VERSION: i16 = 1;
const TOPIC: i8 = 2;
const LITERAL: i8 = 3;
const ALL: i8 = 2;
const READ: i8 = 3;
const DENY: i8 = 2;
const ALLOW: i8 = 3;

/// Denies reading this topic to everyone. Everything else stays allowed.
pub(crate) async fn deny_reading(broker: &str, topic: &str) -> Result<()> {
    let entries = [acl(topic, ALL, ALLOW), acl(topic, READ, DENY)];
    request(broker, CREATE_ACLS, &entries).await
}

/// Deletes the ACL of [`deny_reading`].
pub(crate) async fn allow_reading(broker: &str, topic: &str) -> Result<()> {
    request(broker, DELETE_ACLS, &[acl(topic, READ, DENY)]).await
}

/// Encodes an ACL for every user. A filter that selects it has the same encoding.
fn acl(topic: &str, operation: i8, permission: i8) -> Vec<u8> {
    let mut bytes = TOPIC.to_be_bytes().to_vec();
    bytes.extend(string(topic));
    bytes.extend(LITERAL.to_be_bytes());
    bytes.extend(string("User:*"));
    bytes.extend(string("*"));
    bytes.extend(operation.to_be_bytes());
    bytes.extend(permission.to_be_bytes());
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a short text");
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

async fn request(broker: &str, api: i16, entries: &[Vec<u8>]) -> Result<()> {
    let header = [api.to_be_bytes(), VERSION.to_be_bytes()].concat();
    let correlation_id = 0_i32.to_be_bytes();
    let count = u32::try_from(entries.len())?.to_be_bytes();
    let frame = [
        header,
        correlation_id.to_vec(),
        string("test"),
        count.to_vec(),
        entries.concat(),
    ]
    .concat();
    let mut stream = TcpStream::connect(broker).await?;
    stream.write_u32(u32::try_from(frame.len())?).await?;
    stream.write_all(&frame).await?;
    let mut response = vec![0; usize::try_from(stream.read_u32().await?)?];
    stream.read_exact(&mut response).await?;
    // Correlation id, throttle time, number of results, error code of the first.
    let error = response.get(12..14);
    ensure!(error == Some(&[0, 0]), "{response:?}");
    Ok(())
}
