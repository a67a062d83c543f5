//! What a cluster's administrator does with `kafka-acls.sh`.

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        CreateAclsRequest, CreateAclsResponse, RequestHeader, ResponseHeader,
        create_acls_request::AclCreation,
    },
    protocol::{Decodable as _, Encodable as _, HeaderVersion as _, Request as _, StrBytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Settings of a broker that asks its ACLs, and allows whatever they say nothing of.
pub(crate) const AUTHORIZER: [&str; 2] = [
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found=true",
];

/// Of the protocol: see "ACL" in <https://kafka.apache.org/protocol>.
const VERSION: i16 = 3;
const TOPIC: i8 = 2;
const LITERAL: i8 = 3;
const ALL: i8 = 2;
const WRITE: i8 = 4;
const ALLOW: i8 = 3;
const DENY: i8 = 2;

/// Nobody may write to this topic any more; everything else is allowed.
pub(crate) async fn forbid_writing(broker: &str, topic: &str) -> Result<()> {
    let acl = |operation, permission| {
        AclCreation::default()
            .with_resource_type(TOPIC)
            .with_resource_name(StrBytes::from_string(topic.to_owned()))
            .with_resource_pattern_type(LITERAL)
            .with_principal(StrBytes::from_static_str("User:*"))
            .with_host(StrBytes::from_static_str("*"))
            .with_operation(operation)
            .with_permission_type(permission)
    };
    let request =
        CreateAclsRequest::default().with_creations(vec![acl(ALL, ALLOW), acl(WRITE, DENY)]);
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    RequestHeader::default()
        .with_request_api_key(CreateAclsRequest::KEY)
        .with_request_api_version(VERSION)
        .encode(&mut frame, CreateAclsRequest::header_version(VERSION))?;
    request.encode(&mut frame, VERSION)?;
    let length = u32::try_from(frame.len() - 4)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    let mut stream = TcpStream::connect(broker).await?;
    stream.write_all(&frame).await?;
    let mut answer = vec![0; usize::try_from(stream.read_u32().await?)?];
    stream.read_exact(&mut answer).await?;
    let mut answer = Bytes::from(answer);
    ResponseHeader::decode(&mut answer, CreateAclsResponse::header_version(VERSION))?;
    let answer = CreateAclsResponse::decode(&mut answer, VERSION).context("an answer")?;
    ensure!(
        answer.results.iter().all(|result| result.error_code == 0),
        "{answer:?}"
    );
    Ok(())
}
