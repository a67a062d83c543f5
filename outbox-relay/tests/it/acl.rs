//! ACLs, as an administrator sets them with `kafka-acls.sh`.

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        CreateAclsRequest, DeleteAclsRequest, RequestHeader, ResponseHeader,
        create_acls_request::AclCreation, delete_acls_request::DeleteAclsFilter,
    },
    protocol::{Decodable as _, Encodable as _, HeaderVersion as _, Request, StrBytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Settings of a broker that checks ACLs and allows everything without an ACL.
pub(crate) const AUTHORIZER: [&str; 2] = [
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found=true",
];

/// Constants of the protocol: see "ACL" in <https://kafka.apache.org/protocol>.
const VERSION: i16 = 3;
const TOPIC: i8 = 2;
const TRANSACTIONAL_ID: i8 = 5;
const LITERAL: i8 = 3;
const PREFIXED: i8 = 4;
const ALL: i8 = 2;
const WRITE: i8 = 4;
const DESCRIBE: i8 = 8;
const DESCRIBE_CONFIGS: i8 = 10;
const ALLOW: i8 = 3;
const DENY: i8 = 2;

/// A resource that a relay may use.
pub(crate) struct Allowed {
    resource: i8,
    name: String,
    pattern: i8,
    operations: &'static [i8],
}

impl Allowed {
    /// Returns the ACL of docs/relay/security.md for a topic; `*` for all topics.
    pub(crate) fn topic(name: &str) -> Self {
        Self {
            resource: TOPIC,
            name: name.to_owned(),
            pattern: LITERAL,
            operations: &[WRITE, DESCRIBE, DESCRIBE_CONFIGS],
        }
    }

    /// Returns the ACL of docs/relay/security.md for transactional ids with this prefix; `*` for all.
    pub(crate) fn transactional_id(prefix: &str) -> Self {
        Self {
            resource: TRANSACTIONAL_ID,
            name: prefix.to_owned(),
            pattern: if prefix == "*" { LITERAL } else { PREFIXED },
            operations: &[WRITE],
        }
    }

    fn acls(&self, principal: &str) -> Vec<AclCreation> {
        let acl = |operation| acl(self.resource, &self.name, operation, ALLOW);
        let acls = self.operations.iter().map(|operation| {
            acl(*operation)
                .with_resource_pattern_type(self.pattern)
                .with_principal(StrBytes::from_string(principal.to_owned()))
        });
        acls.collect()
    }
}

/// Allows `principal`, such as `User:name`, these resources.
pub(crate) async fn allow(broker: &str, principal: &str, allowed: &[Allowed]) -> Result<()> {
    let acls = allowed.iter().flat_map(|allowed| allowed.acls(principal));
    create(broker, acls.collect()).await
}

/// Denies writing to this topic to everyone. Everything else stays allowed.
pub(crate) async fn deny_writing(broker: &str, topic: &str) -> Result<()> {
    let acls = [(ALL, ALLOW), (WRITE, DENY)];
    let acls = acls.map(|(operation, permission)| acl(TOPIC, topic, operation, permission));
    create(broker, acls.into()).await
}

/// Ends [`deny_writing`].
pub(crate) async fn allow_writing(broker: &str, topic: &str) -> Result<()> {
    let filter = DeleteAclsFilter::default()
        .with_resource_type_filter(TOPIC)
        .with_resource_name_filter(Some(StrBytes::from_string(topic.to_owned())))
        .with_pattern_type_filter(LITERAL)
        .with_principal_filter(None)
        .with_host_filter(None)
        .with_operation(WRITE)
        .with_permission_type(DENY);
    let request = DeleteAclsRequest::default().with_filters(vec![filter]);
    let response = call(broker, &request).await?;
    let deleted = response.filter_results.iter();
    let deleted: usize = deleted.map(|filter| filter.matching_acls.len()).sum();
    ensure!(deleted == 1, "{response:?}");
    Ok(())
}

/// Returns an ACL for every user.
fn acl(resource: i8, name: &str, operation: i8, permission: i8) -> AclCreation {
    AclCreation::default()
        .with_resource_type(resource)
        .with_resource_name(StrBytes::from_string(name.to_owned()))
        .with_resource_pattern_type(LITERAL)
        .with_principal(StrBytes::from_static_str("User:*"))
        .with_host(StrBytes::from_static_str("*"))
        .with_operation(operation)
        .with_permission_type(permission)
}

async fn create(broker: &str, acls: Vec<AclCreation>) -> Result<()> {
    let request = CreateAclsRequest::default().with_creations(acls);
    let response = call(broker, &request).await?;
    ensure!(
        response.results.iter().all(|result| result.error_code == 0),
        "{response:?}"
    );
    Ok(())
}

/// Sends a request on a new connection.
async fn call<R: Request>(broker: &str, request: &R) -> Result<R::Response> {
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(VERSION)
        .encode(&mut frame, R::header_version(VERSION))?;
    request.encode(&mut frame, VERSION)?;
    let length = u32::try_from(frame.len() - 4)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    let mut stream = TcpStream::connect(broker).await?;
    stream.write_all(&frame).await?;
    let mut response = vec![0; usize::try_from(stream.read_u32().await?)?];
    stream.read_exact(&mut response).await?;
    let mut response = Bytes::from(response);
    ResponseHeader::decode(&mut response, R::Response::header_version(VERSION))?;
    R::Response::decode(&mut response, VERSION).context("a response")
}
