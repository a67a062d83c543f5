//! WatchOrders streams every order and each change, and resumes at a token.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use devstack::{WAIT_TIMEOUT, eventually};
use futures_util::future::try_join_all;
use proto::{
    events::User,
    order::v1::{
        CancelReason, Order, OrderState, WatchOrdersRequest, WatchOrdersResponse,
        order_service_client::OrderServiceClient,
    },
};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming, transport::Channel};
use uuid::Uuid;

use crate::harness::{
    TestService, assert_rejected, assert_rejection, cancellation, deleted_version, insert_orders,
    request,
};

/// A stream of WatchOrders as its caller sees it.
pub(crate) struct Watch {
    stream: Streaming<WatchOrdersResponse>,
    /// The last received resume token.
    token: String,
}

impl Watch {
    /// Watches a user's orders after `token`, or from the beginning.
    pub(crate) async fn start(
        mut client: OrderServiceClient<Channel>,
        user: &User,
        token: &str,
    ) -> Result<Self, Status> {
        let request = WatchOrdersRequest {
            user_id: user.user_id.to_string(),
            resume_token: token.to_owned(),
        };
        Ok(Self {
            stream: client.watch_orders(request).await?.into_inner(),
            token: token.to_owned(),
        })
    }

    /// Returns the next message, or the status at the end of the stream.
    async fn message(&mut self) -> Result<Result<WatchOrdersResponse, Status>> {
        let message = timeout(WAIT_TIMEOUT, self.stream.message()).await;
        let message = message.context("no message in time")?.transpose();
        let message = message.context("the stream ended without a status")?;
        if let Ok(message) = &message {
            self.token.clone_from(&message.resume_token);
        }
        Ok(message)
    }

    /// Returns the next order.
    async fn next(&mut self) -> Result<Order> {
        self.message().await??.order.context("no order")
    }

    /// Returns the next `count` orders.
    async fn take(&mut self, count: usize) -> Result<Vec<Order>> {
        let mut orders = Vec::new();
        while orders.len() < count {
            orders.push(self.next().await?);
        }
        Ok(orders)
    }

    /// Reads all orders to the end of the stream; returns them and the final status.
    pub(crate) async fn read_to_end(&mut self) -> Result<(Vec<Order>, Status)> {
        let mut orders = Vec::new();
        loop {
            match self.message().await? {
                Ok(message) => orders.push(message.order.context("no order")?),
                Err(status) => return Ok((orders, status)),
            }
        }
    }
}

async fn watch(service: &TestService, user: &User, token: &str) -> Result<Watch> {
    Ok(Watch::start(service.orders(), user, token).await?)
}

/// Checks that the next change in each watch is an order placed now.
async fn assert_no_other_changes(
    service: &TestService,
    user: &User,
    watches: &mut [&mut Watch],
) -> Result<()> {
    let placed = service.order(user).await?;
    for watch in watches {
        assert_eq!(watch.next().await?, placed);
    }
    Ok(())
}

/// Returns the ids of orders, which must be unique.
fn ids<'a>(orders: impl IntoIterator<Item = &'a Order>) -> Result<Vec<&'a str>> {
    let mut ids: Vec<_> = orders.into_iter().map(|o| o.order_id.as_str()).collect();
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    ensure!(ids.len() == count, "duplicate orders");
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_starts_with_every_order_and_continues_with_each_change() -> Result<()> {
    let service = TestService::start("watch").await?;
    let (ada, bob) = (service.known_user().await?, service.known_user().await?);
    let (first, second) = (service.order(&ada).await?, service.order(&ada).await?);
    let first = service.cancel(cancellation(&first)).await?.order;
    let first = first.context("no order")?;
    service.order(&bob).await?;
    let mut watch = watch(&service, &ada, "").await?;
    // By time of change.
    assert_eq!(watch.take(2).await?, [second.clone(), first]);
    let third = service.order(&ada).await?;
    assert_eq!(watch.next().await?, third);
    service.order(&bob).await?;
    let cancelled = service.cancel(cancellation(&second)).await?.order;
    assert_eq!(Some(watch.next().await?), cancelled);
    // The deletion of the user cancels both open orders.
    let fourth = service.order(&ada).await?;
    assert_eq!(watch.next().await?, fourth);
    service.publish_user(&deleted_version(&ada)).await?;
    let ended = watch.take(2).await?;
    assert_eq!(ids(&ended)?, ids([&third, &fourth])?);
    for order in ended {
        assert_eq!(order.state(), OrderState::Cancelled);
        assert_eq!(order.cancel_reason(), CancelReason::UserDeleted);
        assert_eq!(order.version, 2);
    }
    drop(watch);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_token_resumes_exactly_after_the_last_received_order() -> Result<()> {
    let service = TestService::start("resume").await?;
    let ada = service.known_user().await?;
    service.order(&ada).await?;
    service.order(&ada).await?;
    let mut first = watch(&service, &ada, "").await?;
    let received = first.next().await?;
    let mut middle = watch(&service, &ada, &first.token).await?;
    let second = first.next().await?;
    assert_ne!(received, second);
    assert_eq!(middle.next().await?, second);
    let mut end = watch(&service, &ada, &first.token).await?;
    assert_no_other_changes(&service, &ada, &mut [&mut first, &mut middle, &mut end]).await?;
    // A change while no watch is open.
    let token = end.token.clone();
    drop((first, middle, end));
    let cancelled = service.cancel(cancellation(&received)).await?.order;
    let mut later = watch(&service, &ada, &token).await?;
    assert_eq!(Some(later.next().await?), cancelled);
    assert_no_other_changes(&service, &ada, &mut [&mut later]).await?;
    // A user without orders.
    let bob = service.known_user().await?;
    let mut nothing = watch(&service, &bob, "").await?;
    assert_no_other_changes(&service, &bob, &mut [&mut nothing]).await?;
    drop((later, nothing));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_the_middle_of_a_page_survives_a_restart_and_misses_no_change() -> Result<()> {
    let service = TestService::start("middle").await?;
    let ada = service.known_user().await?;
    // More than two pages, by one transaction and by several.
    insert_orders(&service.sql, &ada, 230).await?;
    for _ in 0..20 {
        service.order(&ada).await?;
    }
    let mut before = watch(&service, &ada, "").await?;
    let received = before.take(30).await?;
    let token = before.token.clone();
    drop(before);
    let mut rest = watch(&service, &ada, &token).await?;
    let unseen = rest.take(220).await?;
    assert_eq!(ids(received.iter().chain(&unseen))?.len(), 250);
    assert_no_other_changes(&service, &ada, &mut [&mut rest]).await?;
    drop(rest);

    // Cancel one received order and one that was not received.
    let (seen, other) = (&received[7], &unseen[60]);
    service.cancel(cancellation(seen)).await?;
    service.cancel(cancellation(other)).await?;
    let service = service.restart().await?;
    let mut resumed = watch(&service, &ada, &token).await?;
    let mut newest = HashMap::new();
    for order in resumed.take(222).await? {
        let is_newer = newest
            .insert(order.order_id.clone(), order.version)
            .is_none_or(|before| before < order.version);
        assert!(is_newer, "a version was sent twice: {order:?}");
    }
    // All unseen orders, the order placed since, and the change of the seen order.
    assert_eq!(newest.len(), 222);
    assert!(unseen.iter().all(|o| newest.contains_key(&o.order_id)));
    assert_eq!([seen, other].map(|o| newest[&o.order_id]), [2, 2]);
    assert_no_other_changes(&service, &ada, &mut [&mut resumed]).await?;
    drop(resumed);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_committed_late_is_not_missed() -> Result<()> {
    let service = TestService::start("late").await?;
    let ada = service.known_user().await?;
    // Starts before the watch and has the lowest transaction id.
    let earliest = service.session().await?;
    earliest.batch_execute("begin").await?;
    insert_orders(&earliest, &ada, 1).await?;
    let seen = service.order(&ada).await?;
    let mut watch = watch(&service, &ada, "").await?;
    assert_eq!(watch.next().await?, seen);
    let late = service.session().await?;
    late.batch_execute("begin").await?;
    insert_orders(&late, &ada, 1).await?;
    for _ in 0..3 {
        assert_no_other_changes(&service, &ada, &mut [&mut watch]).await?;
    }
    let token = watch.token.clone();
    late.batch_execute("commit").await?;
    let second = watch.next().await?;
    earliest.batch_execute("commit").await?;
    let first = watch.next().await?;
    assert_eq!(ids([&first, &second])?.len(), 2);
    assert_no_other_changes(&service, &ada, &mut [&mut watch]).await?;

    // A token from before both commits returns both.
    let mut resumed = Watch::start(service.orders(), &ada, &token).await?;
    let orders = resumed.take(2).await?;
    assert_eq!(ids(&orders)?, ids([&first, &second])?);
    drop((watch, resumed));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_by_another_replica_arrive() -> Result<()> {
    let service = TestService::start("replica").await?;
    let other = service.replica(&[]).await?;
    let ada = service.known_user().await?;
    let mut watch = watch(&service, &ada, "").await?;
    let placed = other.order(&ada).await?;
    assert_eq!(watch.next().await?, placed);
    let cancelled = other.cancel(cancellation(&placed)).await?.order;
    assert_eq!(Some(watch.next().await?), cancelled);
    // Both replicas accept the token.
    let mut elsewhere = Watch::start(other.orders(), &ada, &watch.token).await?;
    assert_no_other_changes(&service, &ada, &mut [&mut watch, &mut elsewhere]).await?;
    drop((watch, elsewhere));
    other.stop().await?;
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_token_or_another_users_token_is_rejected() -> Result<()> {
    let service = TestService::start("foreign").await?;
    let (ada, bob) = (service.known_user().await?, service.known_user().await?);
    let order = service.create(request(ada.user_id)).await?;
    service.order(&bob).await?;
    let (mut of_ada, mut of_bob) = (
        watch(&service, &ada, "").await?,
        watch(&service, &bob, "").await?,
    );
    of_ada.next().await?;
    of_bob.next().await?;
    let good = of_ada.token.clone();
    let mut changed = good.clone().into_bytes();
    changed[3] = if changed[3] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed)?;
    for bad in [
        changed.as_str(),
        &good[1..],
        &format!("{good}A"),
        &of_bob.token,
        &order.consistency_token,
        "garbage",
        "%",
    ] {
        let rejected = Watch::start(service.orders(), &ada, bad).await.map(drop);
        assert_rejected(rejected, Code::InvalidArgument, "RESUME_TOKEN_INVALID");
    }
    drop((of_ada, of_bob));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_user_id_is_reported() -> Result<()> {
    let service = TestService::start("bad_id").await?;
    let request = WatchOrdersRequest {
        user_id: "1".into(),
        ..WatchOrdersRequest::default()
    };
    let rejected = service.orders().watch_orders(request).await.map(drop);
    let details = assert_rejected(rejected, Code::InvalidArgument, "VALIDATION_FAILED");
    let violations = details.bad_request().context("no BadRequest")?;
    assert_eq!(violations.field_violations[0].field, "user_id");
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_beyond_the_limit_is_rejected() -> Result<()> {
    let service = TestService::start_with("limit", &["--max-watches=1"]).await?;
    let ada = service.known_user().await?;
    let first = watch(&service, &ada, "").await?;
    let rejected = Watch::start(service.orders(), &ada, "").await.map(drop);
    let details = assert_rejected(rejected, Code::ResourceExhausted, "OVERLOADED");
    assert!(details.retry_info().is_some());
    // A closed watch frees its slot.
    drop(first);
    let opening = async || Ok(Watch::start(service.orders(), &ada, "").await.ok());
    let mut second = eventually("a free slot", opening).await?;
    assert_no_other_changes(&service, &ada, &mut [&mut second]).await?;
    drop(second);
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watches_of_one_user_are_not_rejected() -> Result<()> {
    let service = TestService::start_with("crowd", &["--max-calls=2"]).await?;
    let ada = service.known_user().await?;
    // Opened one after the other; only a change polls all of them at once.
    let mut watches = Vec::new();
    let first = service.order(&ada).await?;
    for _ in 0..40 {
        let starting = async || Ok(Watch::start(service.orders(), &ada, "").await.ok());
        let mut watch = eventually("a watch", starting).await?;
        assert_eq!(watch.next().await?, first);
        watches.push(watch);
    }
    for _ in 0..5 {
        let placed = service.create_at_last(&request(ada.user_id)).await?.order;
        let placed = placed.context("no order")?;
        let receiving = watches.iter_mut().map(Watch::next);
        for received in try_join_all(receiving).await? {
            assert_eq!(received, placed);
        }
    }
    drop(watches);
    service.stop().await
}

/// Opens a watch that is not read, and waits until the server ends it. Requires a limit of one watch.
pub(crate) async fn start_unread(service: &TestService, user: &User) -> Result<Watch> {
    // The smallest flow-control window, less than the size of the orders.
    let endpoint = service.endpoint()?.initial_stream_window_size(65_535);
    let client = OrderServiceClient::new(endpoint.connect().await?);
    let unread = Watch::start(client, user, "").await?;
    let opening = async || Ok(Watch::start(service.orders(), user, "").await.ok());
    eventually("a free slot", opening).await?;
    Ok(unread)
}

/// The options for [`start_unread`].
pub(crate) const UNREAD_OPTIONS: [&str; 2] = ["--watch-send-timeout-ms=200", "--max-watches=1"];

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_read_is_rejected_and_can_resume() -> Result<()> {
    const ORDERS: usize = 3_000;
    let service = TestService::start_with("slow", &UNREAD_OPTIONS).await?;
    let ada = service.known_user().await?;
    insert_orders(&service.sql, &ada, ORDERS as i32).await?;
    let mut slow = start_unread(&service, &ada).await?;
    let (received, end) = slow.read_to_end().await?;
    let details = assert_rejection(&end, Code::ResourceExhausted, "WATCH_TOO_SLOW");
    assert!(details.retry_info().is_none());
    assert!((1..ORDERS).contains(&received.len()), "{}", received.len());
    let resuming = async || Ok(Watch::start(service.orders(), &ada, &slow.token).await.ok());
    let mut resumed = eventually("a free slot", resuming).await?;
    let rest = resumed.take(ORDERS - received.len()).await?;
    assert_eq!(ids(received.iter().chain(&rest))?.len(), ORDERS);
    assert_no_other_changes(&service, &ada, &mut [&mut resumed]).await?;
    drop((slow, resumed));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_watch_ends_at_shutdown_without_delaying_it() -> Result<()> {
    // Longer than the test waits.
    let service = TestService::start_with("ends", &["--drain-timeout-ms=600000"]).await?;
    let ada = service.known_user().await?;
    let mut watch = watch(&service, &ada, "").await?;
    assert_no_other_changes(&service, &ada, &mut [&mut watch]).await?;
    service.stop().await?;
    let (received, end) = watch.read_to_end().await?;
    let details = assert_rejection(&end, Code::Unavailable, "WATCH_ENDED");
    assert!(details.retry_info().is_some());
    assert_eq!(received, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_lasts_until_its_callers_deadline_and_not_the_call_limit() -> Result<()> {
    let service = TestService::start_with("lasts", &["--max-deadline-ms=1000"]).await?;
    let sql = "insert into users_cache values ($1::text::uuid, 'a@b.c', 'A', 1, false)";
    let ada = crate::harness::user();
    service
        .sql
        .execute(sql, &[&ada.user_id.to_string()])
        .await?;
    let starting = async || Ok(Watch::start(service.orders(), &ada, "").await.ok());
    let mut watch = eventually("a watch", starting).await?;
    for _ in 0..4 {
        // Found by polling; together they take longer than the limit.
        insert_orders(&service.sql, &ada, 1).await?;
        watch.next().await?;
    }
    drop(watch);
    service.stop().await
}

/// A transaction id far in the future.
const FAR_XID: &str = "1000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_a_restored_database_are_watched_from_the_beginning() -> Result<()> {
    let service = TestService::start("dump").await?;
    let ada = service.known_user().await?;
    insert_orders(&service.sql, &ada, 150).await?;
    // Restored rows have transaction ids of another server.
    let restored = format!("update orders set changed_xid = '{FAR_XID}'");
    service.sql.execute(&restored, &[]).await?;
    let mut first = watch(&service, &ada, "").await?;
    let received = first.take(150).await?;
    assert_eq!(ids(&received)?.len(), 150);
    let cancelled = service.cancel(cancellation(&received[0])).await?.order;
    assert_eq!(Some(first.next().await?), cancelled);
    let mut resumed = watch(&service, &ada, &first.token).await?;
    assert_no_other_changes(&service, &ada, &mut [&mut first, &mut resumed]).await?;
    drop((first, resumed));
    service.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_a_restore_is_rejected() -> Result<()> {
    let service = TestService::start("before").await?;
    let ada = service.known_user().await?;
    service.order(&ada).await?;
    let key = service.token_key().await?;
    let purpose = format!("watch user_id={}", ada.user_id);
    // From the end, and from the middle of the first page.
    let (behind, order_id) = (format!("1:{FAR_XID}:"), Uuid::nil());
    for position in [behind.clone(), format!("1:1:;{behind};25;{order_id}")] {
        let token = key.sign(&purpose, position.as_bytes());
        let (_, end) = watch(&service, &ada, &token).await?.read_to_end().await?;
        assert_rejection(&end, Code::InvalidArgument, "RESUME_TOKEN_INVALID");
    }
    service.stop().await
}
