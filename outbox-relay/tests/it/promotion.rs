//! A standby is promoted in place of the source's database.

use std::sync::Arc;

use anyhow::Result;
use devstack::{Audit, Confirmation, Postgres, Proxy, WorkDir, eventually};
use outbox_relay::config::SinkKind;

use crate::{
    for_each_sink,
    harness::{Database, Setup, Writers},
};

for_each_sink! {
    a_promoted_synchronous_standby_loses_and_invents_no_event,
}

/// The address of the database leads to the promoted standby, under load before and after.
async fn a_promoted_synchronous_standby_loses_and_invents_no_event(sink: SinkKind) -> Result<()> {
    let work_dir = Arc::new(WorkDir::new()?);
    let mut primary = Postgres::start(&work_dir, &["fsync=off"]).await?;
    let mut setup = Setup::new("promotion", sink).await?;
    let proxy = Proxy::start(primary.address()).await?;
    setup.database = Database::at(proxy.url(primary.admin_url())?).await?;
    let standby = primary
        .start_standby(&work_dir, "standby", Confirmation::Synchronous)
        .await?;
    let relay = setup.start().await?;
    let mut writers = Writers::start(&setup.database, &setup.topic).await?;
    setup.records(500).await?;

    primary.process.kill_and_hold().await;
    // Their commits in progress fail.
    let _ = writers.end().await;
    standby.promote().await?;
    proxy.set_target(standby.address());

    let mut writers = Writers::start(&setup.database, &setup.topic).await?;
    let published = setup.records(0).await?.len();
    setup.records(published + 500).await?;
    writers.end().await?;
    let newest = setup.database.newest().await?;
    let audit = eventually("all rows in the topic", async || {
        let audit = Audit::new(&newest, &setup.records(0).await?);
        Ok((audit.lost == 0).then_some(audit))
    })
    .await?;
    assert!(audit.is_clean(), "{audit}");
    relay.wait_for_readiness(200).await?;
    let status = relay.status().await?;
    assert_eq!(status["restarts"]["checkpoint"], 0, "{status}");
    relay.stop().await
}
