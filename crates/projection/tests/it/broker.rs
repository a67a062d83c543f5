//! A broker of one test, which checks ACLs, and whose consumers connect through a proxy.

use std::sync::Arc;

use anyhow::Result;
use devstack::{Addresses, Kafka, Proxy, WorkDir};

use crate::harness::Setup;

pub(crate) struct TestBroker {
    pub(crate) kafka: Kafka,
    pub(crate) proxy: Proxy,
    _work_dir: Arc<WorkDir>,
}

impl TestBroker {
    pub(crate) async fn start() -> Result<Self> {
        let work_dir = Arc::new(WorkDir::new()?);
        let authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             allow.everyone.if.no.acl.found=true";
        let (kafka, proxy) = Kafka::start_behind_proxy(&work_dir, &[authorizer]).await?;
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
