//! A broker of one test, which checks ACLs, and whose consumers connect through a proxy.

use std::sync::Arc;

use anyhow::Result;
use devstack::{Addresses, Kafka, Proxy, WorkDir, free_port};

use crate::harness::Setup;

pub(crate) struct TestBroker {
    pub(crate) kafka: Kafka,
    pub(crate) proxy: Proxy,
    _work_dir: Arc<WorkDir>,
}

impl TestBroker {
    pub(crate) async fn start() -> Result<Self> {
        let work_dir = Arc::new(WorkDir::new()?);
        let behind_proxy = format!("127.0.0.1:{}", free_port()?);
        let proxy = Proxy::start(&behind_proxy).await?;
        let plain = "PLAINTEXT://127.0.0.1:@PORT@";
        let listeners = format!(
            "listeners={plain},PROXIED://{behind_proxy},CONTROLLER://127.0.0.1:@CONTROLLER_PORT@\n\
             advertised.listeners={plain},PROXIED://{}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            proxy.address()
        );
        let authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             allow.everyone.if.no.acl.found=true";
        let kafka = Kafka::start_with_settings(&work_dir, &[&listeners, authorizer]).await?;
        Ok(Self {
            kafka,
            proxy,
            _work_dir: work_dir,
        })
    }

    /// Creates a setup whose consumers connect through the proxy.
    pub(crate) async fn setup(&self, test: &str) -> Result<Setup> {
        let servers = Addresses::shared().with_brokers(self.kafka.brokers());
        let setup = Setup::on(&servers, test, 3).await?;
        Ok(setup.consuming_from(&self.proxy.address()))
    }
}
