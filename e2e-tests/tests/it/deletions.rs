//! The deletion of a user, across services.

use anyhow::{Context as _, Result};
use demo::System;
use devstack::{Record, eventually, read_topic};
use proto::{
    events::{self, header},
    money::v1::Money,
    order::v1::{CancelReason, ListOrdersRequest, Order, OrderState},
    user::v1::{GetUserOrderSummaryRequest, GetUserOrderSummaryResponse},
};
use tonic::Code;
use tonic_types::StatusExt as _;

async fn orders_of(system: &System, user_id: &str) -> Result<Vec<Order>> {
    let request = ListOrdersRequest {
        user_id: user_id.to_owned(),
        ..ListOrdersRequest::default()
    };
    Ok(system
        .orders()
        .list_orders(request)
        .await?
        .into_inner()
        .orders)
}

async fn summary_of(system: &System, user_id: &str) -> Result<GetUserOrderSummaryResponse> {
    let request = GetUserOrderSummaryRequest {
        user_id: user_id.to_owned(),
    };
    let summary = system.users().get_user_order_summary(request).await?;
    Ok(summary.into_inner())
}

/// Returns the records of a key, in order.
async fn records_of(system: &System, topic: &str, key: &str) -> Result<Vec<Record>> {
    let records = read_topic(&system.stack.names().brokers, topic).await?;
    let of_key = records.into_iter().filter(|record| record.key == key);
    Ok(of_key.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_leaves_no_open_order_no_data_and_a_tombstone() -> Result<()> {
    let system = System::start_on_shared_servers("deletion").await?;
    let created = system.create_user("ada@example.com", "Ada").await?;
    let user_id = created.user.context("a user")?.user_id;
    for _ in 0..2 {
        let token = &created.consistency_token;
        system.create_order(&user_id, token).await?;
    }
    let deleted = system.delete_user(&user_id).await?;
    // A caller with the deletion's token gets USER_DELETED.
    let rejected = system
        .create_order(&user_id, &deleted.consistency_token)
        .await;
    let rejected = rejected.err().context("a deleted user has ordered")?;
    let info = rejected.get_details_error_info().context("no ErrorInfo")?;
    assert_eq!(
        (rejected.code(), &*info.reason),
        (Code::FailedPrecondition, "USER_DELETED")
    );
    // The deletion has arrived, and the orders are cancelled.
    let orders = orders_of(&system, &user_id).await?;
    assert_eq!(orders.len(), 2);
    for order in &orders {
        assert_eq!(order.state(), OrderState::Cancelled);
        assert_eq!(order.cancel_reason(), CancelReason::UserDeleted);
        assert_eq!(order.version, 2);
    }
    // user-service receives the cancellations.
    let counted = async || {
        let summary = summary_of(&system, &user_id).await?;
        Ok((summary.cancelled_count == 2).then_some(summary))
    };
    let summary = eventually("two cancelled orders", counted).await?;
    assert_eq!(summary.order_count, 2);
    let is_nothing = |money: &Money| (money.units, money.nanos) == (0, 0);
    assert!(summary.totals.iter().all(is_nothing), "{summary:?}");

    let names = system.stack.names();
    super::assert_nothing_lost(&system, &[]).await?;
    let records = records_of(&system, &names.users_topic, &user_id).await?;
    let types: Vec<_> = records.iter().map(|r| r.header(header::TYPE)).collect();
    let (created, gone) = (Some(events::USER_CREATED), Some(events::USER_DELETED));
    assert_eq!(types, [created, gone, gone]);
    let state = records[1].payload.as_deref().context("no state")?;
    let state: events::User = serde_json::from_slice(state)?;
    assert_eq!((state.deleted, &*state.email, &*state.name), (true, "", ""));
    assert_eq!(records[2].payload, None);
    let deletion_id = records[1].header(header::ID).map(str::to_owned);
    // Each cancellation names its cause.
    for order in orders {
        let records = records_of(&system, &names.orders_topic, &order.order_id).await?;
        let last = records.last().context("no record")?;
        assert_eq!(last.header(header::TYPE), Some(events::ORDER_CANCELLED));
        let cause = last.header(header::CAUSATION_ID);
        assert!(cause.is_some());
        assert_eq!(cause, deletion_id.as_deref());
    }
    system.stop().await;
    Ok(())
}
