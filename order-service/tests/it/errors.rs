//! Every documented error of this service, as a caller sees it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use order_service::error::TABLE;
use proto::order::v1::{CreateOrderRequest, GetOrderRequest};
use service_kit::Reason;
use tonic::Status;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    harness::{TestService, cancellation, deleted_version, insert_orders, request, token_of, user},
    watch::{UNREAD_OPTIONS, Watch, start_unread},
};

/// Returns the names of a rejection's details besides ErrorInfo.
fn details(status: &Status) -> BTreeSet<&'static str> {
    let details = status.get_error_details();
    let info = details.error_info();
    assert!(info.is_some_and(|info| info.domain == order_service::NAME));
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    let found = [
        ("RetryInfo", details.retry_info().is_some()),
        ("DebugInfo", details.debug_info().is_some()),
        ("QuotaFailure", details.quota_failure().is_some()),
        (
            "PreconditionFailure",
            details.precondition_failure().is_some(),
        ),
        ("BadRequest", details.bad_request().is_some()),
        ("RequestInfo", details.request_info().is_some()),
        ("ResourceInfo", details.resource_info().is_some()),
        ("Help", details.help().is_some()),
        ("LocalizedMessage", details.localized_message().is_some()),
        ("`grpc-retry-pushback-ms`", pushback.is_some()),
    ];
    let found = found.into_iter().filter(|(_, is_there)| *is_there);
    found.map(|(name, _)| name).collect()
}

/// Returns the names of the documented details.
fn documented_details(reason: &Reason) -> BTreeSet<&'static str> {
    let promises = reason.details.split(", ").filter(|text| !text.is_empty());
    // Text after " is " describes the value of a detail.
    let names = promises.map(|text| text.split_once(" is ").map_or(text, |(name, _)| name));
    names.collect()
}

/// Provokes every error of this service, by reason.
async fn provoke_all_errors() -> Result<BTreeMap<String, Status>> {
    let options = ["--token-wait-ms=100", "--unknown-user-wait-ms=0"];
    let service =
        TestService::start_with("errors", &[&options[..], &UNREAD_OPTIONS].concat()).await?;
    let nowhere = format!("--user-service-addr=127.0.0.1:{}", devstack::free_port()?);
    let remote = service.replica(&["--validation=remote", &nowhere]).await?;
    let known = service.known_user().await?;
    let gone = service.known_user().await?;
    service.publish_user(&deleted_version(&gone)).await?;
    service.wait_for_version(&deleted_version(&gone)).await?;
    let order = service.order(&known).await?;
    service.cancel(cancellation(&order)).await?;
    insert_orders(&service.sql, &known, 3_000).await?;

    let id = GetOrderRequest {
        order_id: Uuid::now_v7().to_string(),
    };
    let lagging = CreateOrderRequest {
        consistency_token: token_of(&user()),
        ..request(known.user_id)
    };
    let mut slow = start_unread(&service, &known).await?;
    let too_slow = slow.read_to_end().await?.1;
    let foreign = async || {
        let started = Watch::start(service.orders(), &gone, "foreign").await;
        started.map(drop)
    };
    let mut ended = Watch::start(remote.orders(), &gone, "").await?;
    let rejected = [
        service.orders().get_order(id).await.map(drop),
        service.create(request(Uuid::now_v7())).await.map(drop),
        service.create(request(gone.user_id)).await.map(drop),
        service.cancel(cancellation(&order)).await.map(drop),
        service.create(lagging).await.map(drop),
        remote.create(request(known.user_id)).await.map(drop),
        foreign().await,
        Err(too_slow),
    ];
    remote.stop().await?;
    let ended = ended.read_to_end().await?.1;
    let mut by_reason = BTreeMap::new();
    for rejected in rejected.into_iter().chain([Err(ended)]) {
        let status = rejected.expect_err("the call was accepted");
        let info = status.get_details_error_info().context("no ErrorInfo")?;
        by_reason.insert(info.reason, status);
    }
    service.stop().await?;
    Ok(by_reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_error_has_its_code_and_details() -> Result<()> {
    let rejections = provoke_all_errors().await?;
    let names: BTreeSet<&str> = TABLE.iter().map(|reason| reason.name).collect();
    let met: BTreeSet<&str> = rejections.keys().map(String::as_str).collect();
    assert_eq!(met, names);
    for reason in TABLE {
        let status = &rejections[reason.name];
        assert_eq!(status.code(), reason.code, "{}", reason.name);
        assert_eq!(
            details(status),
            documented_details(reason),
            "{}",
            reason.name
        );
        assert!(!status.message().is_empty(), "{}", reason.name);
    }
    Ok(())
}
