//! What changes while a relay runs: logins run out, certificates and passwords are replaced.

use std::time::Duration;

use anyhow::{Context as _, Result};
use devstack::{Audit, eventually, read_topic};
use outbox_relay::{
    TlsFiles,
    config::{KafkaSecurity, Secret, SinkKind},
};

use super::{
    broker::{BRIEF_LOGIN_MS, PASSWORD, SecureBroker, USER},
    certificates::Authority,
    kafka::{records, setup},
};
use crate::{
    for_each_sink,
    harness::{Session, Writers},
};

for_each_sink! {
    logins_that_run_out_are_renewed_while_records_flow,
    a_broker_with_another_authority_is_believed_when_the_file_has_it,
    a_certificate_of_our_own_that_is_replaced_is_shown_from_then_on,
    a_password_that_is_replaced_is_used_from_then_on,
}

const LOGINS: u32 = 3;

async fn logins_that_run_out_are_renewed_while_records_flow(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let setup = setup(broker, &broker.ports.brief, sink, broker.login()).await?;
    let mut writers = Writers::start(&setup.database, &setup.topic).await?;
    let relay = setup.start().await?;
    // It is time itself that is tested: so many logins run out.
    tokio::time::sleep(LOGINS * Duration::from_millis(BRIEF_LOGIN_MS.into())).await;
    writers.end().await?;
    let newest = setup.database.newest().await?;
    let audit = eventually("all rows in the topic", async || {
        let records = read_topic(broker.kafka.brokers(), &setup.topic).await?;
        let audit = Audit::new(&newest, &records);
        Ok((audit.lost == 0).then_some(audit))
    })
    .await?;
    assert!(audit.is_clean(), "{audit}");
    // It is still the first leadership: no connection was ended by the broker.
    let (_, text) = outbox_relay::ask(relay.admin_addr, "/status").await?;
    assert!(text.contains(r#""epoch":1,"#), "{text}");
    relay.stop().await
}

async fn a_broker_with_another_authority_is_believed_when_the_file_has_it(
    sink: SinkKind,
) -> Result<()> {
    let mut broker = SecureBroker::start().await?;
    let setup = setup(&broker, &broker.ports.login, sink, broker.login()).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    records(&broker, &setup, 1).await?;

    broker.kafka.process.stop_and_hold().await;
    let successor = Authority::new("the next authority")?;
    let issued = successor.issue("localhost")?;
    issued.write_together(&broker.home, "login")?;
    broker.kafka.process.release().await;
    setup.write(&session, "a").await?;
    relay.wait_for_state(503, "UnknownIssuer").await?;
    broker.home.write("ca.crt", &successor.pem)?;
    records(&broker, &setup, 2).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await?;
    broker.kafka.process.stop().await;
    Ok(())
}

async fn a_certificate_of_our_own_that_is_replaced_is_shown_from_then_on(
    sink: SinkKind,
) -> Result<()> {
    let broker = SecureBroker::shared();
    let name = format!("renewed-{sink:?}");
    let expired = broker.authority.issue_expired(USER)?;
    let files = TlsFiles {
        ca: Some(broker.ca.clone()),
        identity: Some(expired.write(&broker.home, &name)?),
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
    broker.authority.issue(USER)?.write(&broker.home, &name)?;
    records(broker, &setup, 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}

async fn a_password_that_is_replaced_is_used_from_then_on(sink: SinkKind) -> Result<()> {
    let broker = SecureBroker::shared();
    let name = format!("password-{sink:?}");
    let mut security = broker.login();
    let sasl = security.sasl.as_mut().context("a login")?;
    sasl.password = Secret::File(broker.home.write(&name, "an old one")?);
    let setup = setup(broker, &broker.ports.login, sink, security).await?;
    let session = Session::new(&setup.database).await?;
    setup.write(&session, "a").await?;
    let relay = setup.start().await?;
    relay.wait_for_state(503, "kafka.sasl.username").await?;
    broker.home.write(&name, &format!("{PASSWORD}\n"))?;
    records(broker, &setup, 1).await?;
    relay.wait_for_readiness(200).await?;
    relay.stop().await
}
