//! Permissions.

use std::sync::Arc;

use anyhow::Result;
use devstack::{Kafka, WorkDir, free_port};
use kafka_client::{Error, PasswordMechanism, Sasl, Security};

use crate::harness::{connect, connect_with};

const TOPIC: &str = "secret";
const USER: &str = "reader";
const PASSWORD: &str = "password";

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_distinguished_from_a_missing_topic() -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let address = format!("127.0.0.1:{}", free_port()?);
    let kafka = Kafka::start_with_settings(&work_dir, &[&settings(&address)]).await?;
    kafka.create_topic(TOPIC, 1, &[]).await?;
    // Clients of the plaintext listener are administrators.
    let mut administrator = connect(kafka.brokers()).await?;
    administrator.topic(TOPIC).await?;
    let sasl = Sasl::Password {
        mechanism: PasswordMechanism::Plain,
        username: USER.into(),
        password: PASSWORD.into(),
    };
    let security = Security {
        tls: None,
        sasl: Some(sasl),
    };
    let mut reader = connect_with(&address, security).await?;
    let denied = Error::TopicDenied(TOPIC.into());
    assert_eq!(reader.topic(TOPIC).await, Err(denied.clone()));
    assert_eq!(reader.end_of_epoch(TOPIC, 0, 0).await, Err(denied));
    kafka.process.stop().await;
    Ok(())
}

/// Adds a listener at `address` whose user may not do anything.
fn settings(address: &str) -> String {
    let plain = "PLAINTEXT://127.0.0.1:@PORT@";
    let module = "org.apache.kafka.common.security.plain.PlainLoginModule";
    format!(
        "listeners={plain},CONTROLLER://127.0.0.1:@CONTROLLER_PORT@,SASL://{address}\n\
         advertised.listeners={plain},SASL://{address}\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT\n\
         listener.name.sasl.sasl.enabled.mechanisms=PLAIN\n\
         listener.name.sasl.plain.sasl.jaas.config={module} required user_{USER}=\"{PASSWORD}\";\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS"
    )
}
