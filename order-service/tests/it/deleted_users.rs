//! The orders of deleted users.

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use proto::{
    events::{self, ORDER_CANCELLED, User, header},
    order::v1::{CancelReason, ListOrdersRequest, Order, OrderState},
};
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::{
    CANCELLATIONS, EVENTS, ORDERS, TestService, assert_rejection, cancellation, deleted_version,
    insert_orders, next_version, request, user,
};

const OPEN: &str = "select count(*) from orders where state = 'created'";

async fn orders_of(service: &TestService, user: &User) -> Result<Vec<Order>> {
    let request = ListOrdersRequest {
        user_id: user.user_id.to_string(),
        ..ListOrdersRequest::default()
    };
    Ok(service
        .orders()
        .list_orders(request)
        .await?
        .into_inner()
        .orders)
}

/// Publishes a user deletion, waits until it is applied, and returns the event's id.
async fn delete(service: &TestService, user: &User) -> Result<Uuid> {
    let deleted = deleted_version(user);
    let event_id = service.publish_user(&deleted).await?;
    service.wait_for_version(&deleted).await?;
    Ok(event_id)
}

/// Returns the transaction that wrote a user's current row.
async fn xid_of(service: &TestService, user: &User) -> Result<String> {
    let xid = "select xmin::text from users_cache where user_id = $1::text::uuid";
    let user_id = user.user_id.to_string();
    Ok(service.sql.query_one(xid, &[&user_id]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_cancels_the_users_open_orders_in_the_transaction_that_applies_it() -> Result<()>
{
    let service = TestService::start("deleted").await?;
    let (ada, bob) = (service.known_user().await?, service.known_user().await?);
    let (first, second) = (service.order(&ada).await?, service.order(&ada).await?);
    let cancelled = service.order(&ada).await?;
    service.cancel(cancellation(&cancelled)).await?;
    let cancelled_before = orders_of(&service, &ada).await?.pop();
    service.order(&bob).await?;
    let of_bob = orders_of(&service, &bob).await?;
    // The row's own transaction id would not do: the monitor updates other columns later.
    let log_advances = "
        create table advances (xid text);
        create function log_advance() returns trigger language plpgsql as $$ begin
            insert into advances values (pg_current_xact_id()::xid::text);
            return null;
        end $$;
        create trigger log_advance after update of next_offset on projection_offsets
            for each row execute function log_advance()";
    service.sql.batch_execute(log_advances).await?;
    let event_id = delete(&service, &ada).await?;

    // Only open orders of this user are cancelled.
    let mut of_ada = orders_of(&service, &ada).await?;
    assert_eq!(of_ada.pop(), cancelled_before);
    assert_eq!(of_ada.len(), 2);
    for (before, after) in [first, second].into_iter().zip(&of_ada) {
        let expected = Order {
            state: OrderState::Cancelled.into(),
            cancel_reason: CancelReason::UserDeleted.into(),
            version: 2,
            etag: after.etag.clone(),
            update_time: after.update_time,
            ..before.clone()
        };
        assert_eq!(*after, expected);
        assert_ne!(after.etag, before.etag);
    }
    assert_eq!(orders_of(&service, &bob).await?, of_bob);

    // One transaction wrote the user, the offset, the orders and the events.
    let xid = xid_of(&service, &ada).await?;
    let written = format!(
        "select (select count(*) from advances where xid = '{xid}')
             || ' ' || (select count(*) from orders where xmin::text = '{xid}')
             || ' ' || (select count(*) from orders where changed_xid::xid::text = '{xid}')
             || ' ' || (select count(*) from outbox where xid::xid::text = '{xid}')"
    );
    let written = service.sql.query_one(&written, &[]).await?;
    assert_eq!(written.get::<_, &str>(0), "1 2 2 2");

    // Each order has an event that names its cause.
    for order in of_ada {
        let event = "select event_type, xid::xid::text, headers::text, payload from outbox
                     where key = $1 and aggregate_version = 2";
        let event = service.sql.query_one(event, &[&order.order_id]).await?;
        assert_eq!(
            [0, 1].map(|column| event.get::<_, &str>(column)),
            [ORDER_CANCELLED, &xid]
        );
        let headers: serde_json::Value = serde_json::from_str(event.get(2))?;
        let caused = serde_json::json!({
            header::CAUSATION_ID: event_id.to_string(),
            header::CAUSATION_DEPTH: "1",
        });
        assert_eq!(headers, caused);
        let state: events::Order = serde_json::from_slice(event.get(3))?;
        assert_eq!(state.state, events::OrderState::Cancelled);
        let reason = Some(events::CancelReason::UserDeleted);
        assert_eq!((state.cancel_reason, state.version), (reason, 2));
        assert_eq!(Some(proto::timestamp(state.create_time)), order.create_time);
        assert_eq!(Some(proto::timestamp(state.update_time)), order.update_time);
        assert_eq!((&*state.amount, state.user_id), ("19.90", ada.user_id));
    }
    assert_eq!(service.sql.count(EVENTS).await?, 7);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_or_stale_deletion_cancels_nothing() -> Result<()> {
    let service = TestService::start("twice").await?;
    let ada = service.known_user().await?;
    service.order(&ada).await?;
    let deleted = deleted_version(&ada);
    let (key, payload) = (ada.user_id.to_string(), serde_json::to_vec(&deleted)?);
    let event_id = Uuid::now_v7();
    // Likely in one batch.
    tokio::try_join!(
        service.write_event(&key, &payload, event_id),
        service.write_event(&key, &payload, event_id),
    )?;
    service.wait_until_processed(3).await?;
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 1);
    // This order would be cancelled if the deletion were applied again.
    insert_orders(&service.sql, &ada, 1).await?;
    service.write_event(&key, &payload, event_id).await?;
    service.wait_until_processed(4).await?;
    assert_eq!(service.sql.count(OPEN).await?, 1);
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 1);
    // A deletion older than the known version is ignored.
    let bob = service.known_user().await?;
    let newer = next_version(&next_version(&bob));
    service.publish_user(&newer).await?;
    service.wait_for_version(&newer).await?;
    service.order(&bob).await?;
    service.publish_user(&deleted_version(&bob)).await?;
    service.wait_until_processed(7).await?;
    assert_eq!(service.sql.count(OPEN).await?, 2);
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 1);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_without_a_usable_id_cancels_without_a_cause() -> Result<()> {
    let service = TestService::start("no_cause").await?;
    let ada = service.known_user().await?;
    service.order(&ada).await?;
    let payload = serde_json::to_vec(&deleted_version(&ada))?;
    let headers = [
        (header::SPEC_VERSION, "1.0"),
        (header::TYPE, "user_deleted"),
        (header::ID, "no id"),
    ];
    service
        .write_with(&ada.user_id.to_string(), &payload, &headers)
        .await?;
    service.sql.wait_for(CANCELLATIONS, 1).await?;
    let caused = "select count(*) from outbox where headers is not null";
    assert_eq!(service.sql.count(caused).await?, 0);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_causation_depth_is_incremented_and_limited() -> Result<()> {
    let service = TestService::start("chain").await?;
    for (depth, became) in [("7", "8"), ("8", "too long"), ("eight", "no number")] {
        let user = service.known_user().await?;
        service.order(&user).await?;
        let payload = serde_json::to_vec(&deleted_version(&user))?;
        let headers = [
            (header::SPEC_VERSION, "1.0"),
            (header::TYPE, "user_deleted"),
            (header::ID, &*Uuid::now_v7().to_string()),
            (header::CAUSATION_DEPTH, depth),
        ];
        service
            .write_with(&user.user_id.to_string(), &payload, &headers)
            .await?;
        let what = match became {
            "8" => "select count(*) from outbox where headers->>'ce_causationdepth' = '8'",
            "too long" => "select count(*) from dead_letters where error_class = 'chain'",
            _ => "select count(*) from dead_letters where error like 'ce_causationdepth%'",
        };
        service.sql.wait_for(what, 1).await?;
    }
    // The two dead-lettered deletions cancelled nothing.
    assert_eq!(service.sql.count(OPEN).await?, 2);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_cancels_more_orders_than_one_statement_can_write() -> Result<()> {
    let service = TestService::start("many").await?;
    let ada = service.known_user().await?;
    // More events than one statement can write.
    insert_orders(&service.sql, &ada, 1_200).await?;
    delete(&service, &ada).await?;
    assert_eq!(service.sql.count(OPEN).await?, 0);
    let xid = xid_of(&service, &ada).await?;
    let keys = format!(
        "select count(distinct key) from outbox join orders on key = order_id::text
         where xid::xid::text = '{xid}' and changed_xid = xid and aggregate_version = version
           and version = 2"
    );
    assert_eq!(service.sql.count(&keys).await?, 1_200);
    assert_eq!(service.sql.count(EVENTS).await?, 1_200);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_placed_during_its_users_deletion_never_stays_open() -> Result<()> {
    /// The number of runs and of concurrent callers.
    const USERS: usize = 12;
    const CALLERS: usize = 12;
    let service = TestService::start("race").await?;
    for _ in 0..USERS {
        let ada = service.known_user().await?;
        // Each caller orders until it gets USER_DELETED.
        let ordering = async || {
            loop {
                let Err(status) = service.create(request(ada.user_id)).await else {
                    continue;
                };
                if status.get_details_retry_info().is_none() {
                    assert_rejection(&status, Code::FailedPrecondition, "USER_DELETED");
                    return Ok(());
                }
            }
        };
        let placed = service.sql.count(ORDERS).await?;
        let deleting = async {
            let under_way = async || {
                let more = service.sql.count(ORDERS).await? - placed;
                Ok((more >= CALLERS as i64).then_some(()))
            };
            devstack::eventually("orders", under_way).await?;
            delete(&service, &ada).await.map(drop)
        };
        tokio::try_join!(try_join_all((0..CALLERS).map(|_| ordering())), deleting)?;
        let open = service.sql.count(OPEN).await?;
        ensure!(open == 0, "{open} orders of a deleted user are open");
    }
    // Every order and every cancellation has an event.
    let orders = service.sql.count(ORDERS).await?;
    assert_eq!(service.sql.count(CANCELLATIONS).await?, orders);
    assert_eq!(service.sql.count(EVENTS).await?, 2 * orders);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_concurrent_deletion_and_cancellation_cancel_an_order_once() -> Result<()> {
    let service = TestService::start("both").await?;
    for _ in 0..8 {
        let ada = service.known_user().await?;
        let mut orders = Vec::new();
        for _ in 0..8 {
            orders.push(service.order(&ada).await?);
        }
        let cancelling = orders.iter().map(async |order| {
            match service.cancel(cancellation(order)).await {
                Ok(_) => {}
                Err(status) => {
                    assert_rejection(&status, Code::FailedPrecondition, "ORDER_CANCELLED");
                }
            }
            Ok(())
        });
        tokio::try_join!(delete(&service, &ada), try_join_all(cancelling))?;
    }
    assert_eq!(service.sql.count(OPEN).await?, 0);
    let ended = "select count(*) from orders where version = 2";
    assert_eq!(service.sql.count(ended).await?, 64);
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 64);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_of_an_unknown_user_cancels_its_orders() -> Result<()> {
    let service = TestService::start("first").await?;
    let ada = user();
    // As after a rebuild of users_cache: the orders are still there.
    insert_orders(&service.sql, &ada, 3).await?;
    delete(&service, &ada).await?;
    assert_eq!(service.sql.count(OPEN).await?, 0);
    assert_eq!(service.sql.count(CANCELLATIONS).await?, 3);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_placed_before_the_swap_of_a_rebuild_is_cancelled_if_its_user_is_deleted()
-> Result<()> {
    let service = TestService::start("rebuilt").await?;
    let ada = service.known_user().await?;
    service.publish_user(&deleted_version(&ada)).await?;
    service.wait_for_version(&deleted_version(&ada)).await?;
    // A call that reads the old table can place an order right after the rebuild's own cancellations.
    let place = format!(
        "create function place() returns trigger language plpgsql as $$ begin
             insert into orders (order_id, user_id, amount_minor, currency, state, version,
                                 create_time, update_time)
             values (gen_random_uuid(), '{}', 1, 'EUR', 'created', 1, now(), now());
             return null;
         end $$;
         create constraint trigger place after update on projection_offsets
             deferrable initially deferred for each row
             when (new.projection like '% rebuild' and old.next_offset <> new.next_offset)
             execute function place()",
        ada.user_id
    );
    service.sql.batch_execute(&place).await?;
    service.rebuild().await?;
    assert!(service.sql.count(ORDERS).await? > 0, "no order was placed");
    assert_eq!(service.sql.count(OPEN).await?, 0);
    service.stop().await
}
