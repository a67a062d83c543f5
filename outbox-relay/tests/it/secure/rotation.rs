//! Expiring sessions, and rotation of certificates and passwords while a relay runs.

use std::time::Duration;

use anyhow::{Result, bail};
use devstack::{Audit, Authority, eventually, read_topic};
use outbox_relay::{
    TlsFiles,
    config::{KafkaSecurity, Sasl, Secret, SinkKind},
};

use super::{
    broker::{PASSWORD, SHORT_SESSION_MS, SecureBroker, USER},
    kafka::{records, setup},
};
use crate::{
    for_each_sink,
    harness::{Session, Writers},
};

for_each_sink! {
    an_expiring_sasl_session_is_renewed_while_records_flow,
    a_replaced_ca_file_takes_effect_without_a_restart,
    a_replaced_client_certificate_takes_effect_without_a_restart,
    a_replaced_password_takes_effect_without_a_restart,
}

const SESSIONS: u32 = 3;

async fn an_expiring_sasl_session_is_renewed_while_records_flow(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let setup = setup(broker, &broker.ports.short_session, sink, broker.scram()).await?;
    let mut writers = Writers::start(&setup.database, &setup.topic).await?;
    let relay = setup.start().await?;
    // Session lifetimes cannot be shortened: this many sessions expire.
    tokio::time::sleep(SESSIONS * Duration::from_millis(SHORT_SESSION_MS.into())).await;
    writers.end().await?;
    let newest = setup.database.newest().await?;
    let audit = eventually("all rows in the topic", async || {
        let records = read_topic(broker.kafka.brokers(), &setup.topic).await?;
        let audit = Audit::new(&newest, &records);
        Ok((audit.lost == 0).then_some(audit))
    })
    .await?;
    assert!(audit.is_clean(), "{audit}");
    // Epoch 1: the broker closed no connection.
    let (_, text) = outbox_relay::ask(relay.admin_addr, "/status").await?;
    assert!(text.contains(r#""epoch":1,"#), "{text}");
    relay.stop().await
}

async fn a_replaced_ca_file_takes_effect_without_a_restart(sink: SinkKind) -> Result<()> {
    let mut broker = SecureBroker::start().await?;
    let setup = setup(&broker, &broker.ports.sasl, sink, broker.scram()).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    records(&broker, &setup, 1).await?;

    broker.kafka.process.stop_and_hold().await;
    let successor = Authority::new("next CA")?;
    let issued = successor.issue("localhost")?;
    issued.write_combined(&broker.work_dir, "sasl")?;
    broker.kafka.process.release().await;
    setup.write(&session, "a").await?;
    relay.wait_for_state(503, "UnknownIssuer").await?;
    broker.work_dir.write("ca.crt", &successor.pem)?;
    records(&broker, &setup, 2).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    broker.kafka.process.stop().await;
    Ok(())
}

async fn a_replaced_client_certificate_takes_effect_without_a_restart(
    sink: SinkKind,
) -> Result<()> {
    let broker = SecureBroker::shared();
    let name = format!("renewed-{sink:?}");
    let expired = broker.authority.issue_expired(USER)?;
    let files = TlsFiles {
        ca: Some(broker.ca.clone()),
        identity: Some(expired.write(&broker.work_dir, &name)?),
    };
    let security = KafkaSecurity {
        tls: Some(files),
        sasl: None,
    };
    let setup = setup(broker, &broker.ports.certificate, sink, security).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    relay
        .wait_for_state(503, "kafka.tls.certificate_file")
        .await?;
    broker
        .authority
        .issue(USER)?
        .write(&broker.work_dir, &name)?;
    records(broker, &setup, 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

async fn a_replaced_password_takes_effect_without_a_restart(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let name = format!("password-{sink:?}");
    let mut security = broker.scram();
    let file = broker.work_dir.write(&name, "old-password")?;
    let Some(Sasl::Password { password, .. }) = &mut security.sasl else {
        bail!("no password");
    };
    *password = Secret::File(file);
    let setup = setup(broker, &broker.ports.sasl, sink, security).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    relay.wait_for_state(503, "kafka.sasl.username").await?;
    broker.work_dir.write(&name, &format!("{PASSWORD}\n"))?;
    records(broker, &setup, 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}
